"""Post-processing of finished frames: larger ones, and more of them in a second."""
