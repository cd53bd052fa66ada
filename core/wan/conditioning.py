"""Conditioning: prompts as text embeddings; a task as the latents and the mask that the model reads beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ..executor.placement import placed, shown_blocks
from ..executor.tensor_cache import Encoded, TensorCache, digest, encoded
from ..families.prompt_tokens import PromptTokenizer, encode_weighted
from .denoise import PrefixLatents
from .latent_scale import normalised
from .latents import FRAME_STEP, STRIDE
from .task.canvas import Canvas, as_loop, compose, empty_canvas
from .task.frames import on_white
from .task.vace_task import Strength, VACETask

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKLWan

    from ..host.base import Host, Reporter
    from ..planner.plan_types import PhasePlan
    from .model import WanModel


MAX_PROMPT_TOKENS = 512  # text length of Wan2.1 (wan/configs/shared_config.py, text_len)

# A video [1, 3, n, H, W] in -1..1 → its normalised latents [1, z, 1 + (n - 1) / 4, H / 8, W / 8].
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class VACEInputs:
    """What the authors' code calls src_video, src_mask and src_ref_images, ready to be encoded.

    Attributes:
        canvas: kept pixels, control, and gray where the model is shown nothing; and what it makes.
        references: float32 [3, H, W] in -1..1, letterboxed on white, in the order the model gets them.
        strength: how strongly the model follows all of it.
        before: what the video begins as and turns from while it is sampled, or None.
    """

    canvas: Canvas
    references: tuple[torch.Tensor, ...] = ()
    strength: Strength = field(default_factory=Strength)
    before: PrefixLatents | None = None

    @property
    def video(self) -> torch.Tensor:
        """src_video: float32 [1, 3, N, H, W] in -1..1, exactly 0 where the model is shown nothing."""
        return self.canvas.frames.permute(3, 0, 1, 2)[None] * 2 - 1

    @property
    def mask(self) -> torch.Tensor:
        """src_mask: float32 [1, 1, N, H, W], 1 where the model makes something, else 0."""
        return self.canvas.make[None, None].float()

    def scale_at(self, step: int, steps: int) -> float:
        """Return the conditioning scale of step `step` (from 0) of `steps`."""
        return self.strength.at(step, steps)


def prepare(task: VACETask | None, width: int, height: int, num_frames: int) -> VACEInputs:
    """Return the inputs of a video of that size and length; without a task, those of text to video.

    Args:
        task: what the video is made from beside its prompt.
        width, height: pixels, multiples of 16.
        num_frames: 4n+1.

    Raises:
        PiyingError: the task does not go with the size or length, or contradicts itself; the text says where.
    """
    if task is None:
        return VACEInputs(empty_canvas(width, height, num_frames))
    references = references_on_white(task.references, width, height)
    return VACEInputs(compose(task, width, height, num_frames), references, task.strength or Strength())


def references_on_white(pictures: Sequence[torch.Tensor], width: int, height: int) -> tuple[torch.Tensor, ...]:
    """Return pictures [h, w, 3] in 0..1 as the model gets them: [3, height, width] in -1..1, letterboxed."""
    return tuple(on_white(picture, width, height) for picture in pictures)


def encode_task(encode: Encode, inputs: VACEInputs) -> torch.Tensor:
    """Return a task's latents [1, 2z, R + T, H / 8, W / 8] for R references and T latent frames.

    Kept pixels and drawn-over pixels are encoded apart, then stacked; each reference is one latent frame in front
    with nothing to draw over. With `append_mask` equal to `vace_encode_frames`, `vace_encode_masks`
    and `vace_latent` of VACE's wan_vace.py, and to diffusers' `prepare_video_latents` and
    `prepare_masks`, which put several references in reverse order.

    Args:
        encode: called for the kept part, the drawn-over part where there is any control, and each reference.
            It may compute in chunks and tiles, on any device; latents are joined where they arrive.
        inputs: from `prepare`.
    """
    video, make = inputs.video, inputs.canvas.make[None, None]
    # One half at a time: each is as large as the video, gigabytes where that is long.
    kept = encode(video.masked_fill(make, 0.0))
    # Where nothing is shown both halves are the same gray video, and encoding it once halves the wait.
    drawn_over = encode(video.masked_fill(~make, 0.0)) if video.any() else kept
    del video
    latents = torch.cat([kept, drawn_over], dim=1)
    # The authors' order: the first reference is the first latent frame.
    pictures = [encode(picture[None, :, None]) for picture in inputs.references]
    front = [torch.cat([picture, torch.zeros_like(picture)], dim=1) for picture in pictures]
    return torch.cat([*front, latents], dim=2)


def append_mask(latents: torch.Tensor, inputs: VACEInputs) -> torch.Tensor:
    """Return the control [1, 2z + 64, R + T, H / 8, W / 8]: latents of `encode_task`, and the mask."""
    mask = fold_mask(inputs.mask, len(inputs.references)).to(latents)
    return torch.cat([latents, mask], dim=1)


def fold_mask(mask: torch.Tensor, references: int) -> torch.Tensor:
    """Return a mask [1, 1, N, H, W] as [1, 64, R + T, H / 8, W / 8], zeros for the R references in front.

    Each 8×8 pixels become 64 channels. In time one frame stands for those of its latent frame, the one
    that "nearest-exact" picks: with 81 frames the second, sixth, tenth …, neither the first nor the last.
    """
    count = mask.shape[2]
    folded = functional.pixel_unshuffle(mask[0, 0][:, None], STRIDE).permute(1, 0, 2, 3)[None]
    size = ((count + FRAME_STEP - 1) // FRAME_STEP, *folded.shape[3:])
    folded = functional.interpolate(folded, size=size, mode="nearest-exact")
    return functional.pad(folded, (0, 0, 0, 0, references, 0))


def encode_video(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Return a video's normalised latents, computed where the VAE is, as diffusers computes them."""
    moments = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode()
    return normalised(vae.config, moments).to(vae.dtype)


def paste(frames: torch.Tensor, inputs: VACEInputs) -> torch.Tensor:
    """Return the made frames [N, H, W, 3] in 0..1 with the kept pixels brought back where that was asked for.

    A pixel of weight 1 comes back bit for bit.
    """
    if inputs.canvas.weights is None:
        return frames
    kept, weights = (as_loop(values, len(frames)) for values in (inputs.canvas.frames, inputs.canvas.weights))
    return torch.lerp(frames, kept.to(frames), weights[..., None].to(frames))


Tensors = Mapping[str, torch.Tensor]
MAX_TASKS = 8  # tasks and gray videos; one takes up to 40 MB for 81 frames at 720p


@dataclass(frozen=True)
class TaskCache:
    """Encoded tasks on disk.

    Attributes:
        store: holds them.
        vae: what their latents depend on beside the pictures: the VAE, and how it computes.
    """

    store: TensorCache
    vae: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, vae: Mapping[str, Any]) -> TaskCache:
        """Return the one in the host's cache folder."""
        return cls(TensorCache(folder / "tasks", MAX_TASKS), vae)

    def get_or_encode(self, inputs: VACEInputs, encode: Callable[[], Tensors]) -> Tensors:
        """Return what was stored for a task that looks the same, else what `encode` returns, which is stored."""
        canvas = inputs.canvas
        return self._get_or_encode({"tensors": digest([canvas.frames, canvas.make, *inputs.references])}, encode)

    def cache_gray(self, encode: Encode) -> Encode:
        """Return `encode`, which gives latents on the CPU, so that it is called once for all gray videos of a size.

        One of the two parts of most tasks is gray: what is kept where all is drawn over, and what is drawn over
        where nothing is.
        """

        def latents(video: torch.Tensor) -> torch.Tensor:
            if video.any():
                return encode(video)
            key = {"gray": list(video.shape)}
            return self._get_or_encode(key, lambda: {"latents": encode(video)})["latents"]

        return latents

    def _get_or_encode(self, what: Mapping[str, Any], encode: Callable[[], Tensors]) -> Tensors:
        key = {**self.vae, **what}
        stored: Tensors | None = self.store.get(key)
        if stored is None:
            stored = encode()
            self.store.put(key, stored)
        return stored


def encode_prompts(
    prompts: list[str],
    model: WanModel,
    choice: PhasePlan,
    *,
    device: str,
    host: Host,
    reporter: Reporter,
    logged: set[str] | None = None,
) -> list[torch.Tensor]:
    """Return one embedding [1, 512, d] on the CPU for each prompt, computed as WanVACEPipeline does.

    Weights in a prompt are those of ComfyUI. What they are, and what is beyond the encoder's room, is logged.

    Args:
        logged: lines that were logged before and are not logged again; new ones are added.

    Raises:
        PiyingError: the encoder cannot be read, or a weight is out of range.
    """
    progress, done = reporter.progress("Encoding prompt", len(prompts), seconds=choice.seconds), 0

    def encode(new: list[str]) -> list[Encoded]:
        nonlocal done
        pipeline = model.encoder_pipeline(choice)
        encoder = pipeline.text_encoder
        pipeline.tokenizer = tokenizer = PromptTokenizer(pipeline.tokenizer, MAX_PROMPT_TOKENS, "The text encoder")
        states = []

        def encode_one(prompt: str) -> Encoded:
            embeds, _ = pipeline.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                max_sequence_length=MAX_PROMPT_TOKENS,
                device=torch.device(device),
            )
            return {"states": embeds.cpu()}

        blocks = list(encoder.encoder.block)
        with (
            placed(encoder, choice, device, host, blocks=blocks),
            shown_blocks(blocks, reporter, "Text encoder", len(new)),
        ):
            for done, prompt in enumerate(new, len(prompts) - len(new) + 1):
                states.append(encode_weighted(prompt, tokenizer, encode_one))
                progress.step(done)
        return states

    found = encoded(prompts, model.parts.identity("text_encoder"), choice, host, encode=encode, logged=logged)
    if done < len(prompts):  # all of them were cached
        progress.step(len(prompts))
    return [tensors["states"] for tensors in found]
