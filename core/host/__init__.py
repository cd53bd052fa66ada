"""Hosts: the program around the pack, ComfyUI or a headless process."""
