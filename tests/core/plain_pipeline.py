"""What diffusers' own pipeline makes of a request."""

from __future__ import annotations

import torch


def plain_frames(pipeline, request, generator=None, **inputs):
    """Return the frames [N, H, W, 3] of a pipeline of Wan in 0..1; `inputs` is what it is given beside the request."""
    frames = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        generator=generator or torch.Generator().manual_seed(request.seed),
        output_type="np",
        **inputs,
    ).frames[0]
    return torch.from_numpy(frames)
