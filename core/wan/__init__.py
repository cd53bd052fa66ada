"""Wan2.1-VACE: from a request to frames."""
