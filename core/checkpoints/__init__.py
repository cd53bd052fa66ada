"""Files on disk: which models are there, and how they become modules."""
