"""Devices, number types, and what is where."""
