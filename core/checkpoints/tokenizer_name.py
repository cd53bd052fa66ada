"""The name under which ComfyUI's files carry a tokenizer."""

NAME = "spiece_model"  # a tensor of bytes: a SentencePiece model
