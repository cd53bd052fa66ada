"""Latents of Wan's VAEs: how many latent frames stand for the frames of a video."""

FRAME_STEP = 4  # the VAE packs four frames into one latent frame after the first


def latent_frames(num_frames: int) -> int:
    """Return the latent frames of 4n+1 frames."""
    return 1 + (num_frames - 1) // FRAME_STEP
