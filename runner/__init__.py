"""The headless host: runs workflow files without ComfyUI."""
