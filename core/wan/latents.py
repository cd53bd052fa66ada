"""Latents of Wan's VAEs: their channels, and what frames and pixels they stand for."""

FRAME_STEP = 4  # the VAE packs four frames into one latent frame after the first
STRIDE, CHANNELS = 8, 16  # pixels of a side for a latent pixel of Wan2.1's VAE, and its channels
TI2V_STRIDE, TI2V_CHANNELS = 16, 48  # of Wan2.2-TI2V's VAE, which is another one than that of all other models


def latent_frames(num_frames: int) -> int:
    """Return the latent frames of 4n+1 frames."""
    return 1 + (num_frames - 1) // FRAME_STEP


def video_frames(latents: int) -> int:
    """Return how many frames so many latent frames are decoded to."""
    return 1 + FRAME_STEP * (latents - 1)
