"""The catalog: which models are installed, which one a handle stands for, and what it weighs."""
