"""Image and video files: their numbered names, pixels, sound and embedded workflows."""
