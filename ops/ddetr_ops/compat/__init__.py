"""Drop-in replacements for other projects: `original`, `mmcv`, `huggingface`."""
