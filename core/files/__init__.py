"""Files of weights: safetensors, GGUF and PyTorch, from header to tensors."""
