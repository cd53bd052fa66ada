"""LoRA: files, their catalog, and how they change a loaded model."""
