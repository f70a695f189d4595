"""The op under the names that other projects use: `original`, `mmcv`, `huggingface`."""
