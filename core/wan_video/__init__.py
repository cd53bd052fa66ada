"""Wan without VACE: text, and a first and a last frame where there are such, to video."""
