"""Hunyuan-DiT: text → image."""
