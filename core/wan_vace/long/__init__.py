"""Videos longer than the model makes at once: windows that follow each other, each begun on the one before."""
