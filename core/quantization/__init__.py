"""Weight formats: how weights are stored in fewer bits, and which layers are."""
