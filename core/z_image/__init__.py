"""Z-Image: text, and a picture where there is one, to image."""
