"""Drop-in replacements under the names of other projects: `original`, `mmcv`, `huggingface`."""
