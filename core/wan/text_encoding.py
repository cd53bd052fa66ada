"""Prompts → text embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..executor.placement import placed
from ..executor.tensor_cache import Encoded, encoded

if TYPE_CHECKING:
    import torch

    from ..host.base import Host
    from ..planner.plan_types import PhasePlan
    from .model import WanVACEModel


MAX_PROMPT_TOKENS = 512  # text length of Wan2.1 (wan/configs/shared_config.py, text_len)


def encode(prompts: list[str], model: WanVACEModel, choice: PhasePlan, device: str, host: Host) -> list[torch.Tensor]:
    """Return one embedding [1, 512, d] on the CPU for each prompt, computed as WanVACEPipeline does.

    Raises:
        PiyingError: the encoder cannot be read.
    """
    progress, done = host.progress("Encoding prompt", len(prompts)), 0

    def run(new: list[str]) -> list[Encoded]:
        nonlocal done
        pipeline = model.encoder_pipeline(choice)
        encoder = pipeline.text_encoder
        states = []
        with placed(encoder, list(encoder.encoder.block), choice, device, host):
            for done, prompt in enumerate(new, len(prompts) - len(new) + 1):
                embeds, _ = pipeline.encode_prompt(
                    prompt, do_classifier_free_guidance=False, max_sequence_length=MAX_PROMPT_TOKENS, device=device
                )
                states.append({"states": embeds.cpu()})
                progress.step(done)
        return states

    found = encoded(prompts, model.parts.identity("text_encoder"), choice, host, run)
    if done < len(prompts):  # all of them were encoded before
        progress.step(len(prompts))
    return [tensors["states"] for tensors in found]
