"""The Wan VACE transformer: one prediction for several prompts at once, a block at a time.

diffusers runs all VACE blocks first and keeps their hints, one activation each, until the main
blocks use them; and it runs the prompts one after the other, each through all weights. Here a VACE
block runs when its hint is needed, and each block takes every prompt before the next block's turn:
no hint waits, and weights that are streamed to the device are streamed once for all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import WanVACETransformer3DModel

    from .step_cache import StepCache

    _Pair = tuple[torch.nn.Module, torch.nn.Module | None]
    from ..planner.plan_types import PhasePlan


@dataclass
class _Branch:
    """What one prompt's way through the blocks carries along, or that of all prompts in one batch.

    Attributes:
        hidden: the video's tokens [batch, tokens, dim].
        control: the VACE blocks' own stream, of the same shape.
        text: the prompt's tokens [batch, 512, dim].
        temb: the timestep [batch, dim], for the output head.
        time: the timestep [batch, 6, dim], for the blocks.
    """

    hidden: torch.Tensor
    control: torch.Tensor
    text: torch.Tensor
    temb: torch.Tensor
    time: torch.Tensor


def block_order(transformer: WanVACETransformer3DModel) -> list[torch.nn.Module]:
    """Return the blocks in the order in which `predict` runs them."""
    order = []
    for main, vace in _pairs(transformer):
        order += [main] if vace is None else [main, vace]
    return order


def predict(
    transformer: WanVACETransformer3DModel,
    latents: torch.Tensor | Sequence[torch.Tensor],
    timestep: torch.Tensor,
    embeds: Sequence[torch.Tensor],
    control: torch.Tensor | Sequence[torch.Tensor],
    scale: float | Sequence[float] | torch.Tensor = 1.0,
    check: Callable[[], None] | None = None,
    cache: StepCache | None = None,
    together: bool = False,
) -> list[torch.Tensor]:
    """Predict the velocity for each prompt.

    Equals `transformer(latents, timestep, embeds[i], control_hidden_states=control, …)` called for
    one prompt after the other. For inference: no gradient checkpointing.

    Args:
        transformer: its weights may be on the device or be streamed there in `block_order`.
        latents: [batch, in_channels, frames, height / 8, width / 8] in the transformer's type;
            one tensor for all prompts, or one for each.
        timestep: [batch].
        embeds: one [batch, 512, text_dim] per prompt (the prompt and, with guidance, the negative one).
        control: [batch, vace_in_channels, frames, height / 8, width / 8]; one for all, or one each.
        scale: strength of the control; one number for all VACE layers, or one per layer.
        check: called before each block; what it raises ends the prediction.
        cache: what is remembered of steps before, told of this one; the result may then be a forecast.
        together: take all prompts through a block in one batch. That starts fewer operations, takes more memory,
            and its sums round otherwise.

    Returns:
        One tensor of the latents' shape per prompt.

    Raises:
        ValueError: `scale` has not one number per VACE layer.
    """
    count = len(embeds) if together else 1
    latents, control = _each(latents, len(embeds)), _each(control, len(embeds))
    if together:
        latents, control, embeds = [torch.cat(latents)], [torch.cat(control)], [torch.cat(tuple(embeds))]
    scales = iter(_scales(scale, transformer, latents[0]))
    rotary = transformer.rope(latents[0])
    branches = _begin(transformer, latents, timestep.repeat(count), embeds, control)
    pairs = _pairs(transformer)

    def run(some: Sequence[_Pair]) -> None:
        for main, vace in some:
            _run_pair(main, vace, branches, rotary, scales, check)

    if cache is not None:
        before = _hidden(branches, count)
        run(pairs[:1])
        if cache.skips(before, _hidden(branches, count)):
            return cache.forecast(len(before))
        del before
        pairs = pairs[1:]
    run(pairs)
    results = [_finish(transformer, branch, each.shape) for branch, each in zip(branches, latents, strict=True)]
    results = [prompt for result in results for prompt in result.chunk(count)]
    if cache is not None:
        cache.keep(results)
    return results


def _hidden(branches: list[_Branch], count: int) -> list[torch.Tensor]:
    """Return each prompt's tokens, where a branch has `count` of them in a batch."""
    return [prompt for branch in branches for prompt in branch.hidden.chunk(count)]


def _run_pair(
    main: torch.nn.Module,
    vace: torch.nn.Module | None,
    branches: list[_Branch],
    rotary: tuple[torch.Tensor, torch.Tensor],
    scales: Iterator[torch.Tensor],
    check: Callable[[], None] | None,
) -> None:
    """Take every prompt through a main block, then through the VACE block whose hint is added behind it."""
    # Of the VACE blocks only the one with an input projection, the first, reads the video's tokens,
    # and as they were before any main block.
    reads = getattr(vace, "proj_in", None) is not None
    starts = [branch.hidden if reads else None for branch in branches]
    _call(check)
    for branch in branches:
        branch.hidden = main(branch.hidden, branch.text, branch.time, rotary)
    if vace is None:
        return
    _call(check)
    strength = next(scales)
    for branch, start in zip(branches, starts, strict=True):
        _add_hint(vace, branch, start, rotary, strength)


def _pairs(transformer: WanVACETransformer3DModel) -> list[_Pair]:
    """Return each main block with the VACE block whose hint is added to its output."""
    vace, layers = iter(transformer.vace_blocks), transformer.config.vace_layers
    return [(block, next(vace) if index in layers else None) for index, block in enumerate(transformer.blocks)]


def _each(given: torch.Tensor | Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [given] * count if isinstance(given, torch.Tensor) else list(given)


def _call(check: Callable[[], None] | None) -> None:
    if check is not None:
        check()


def _scales(
    scale: float | Sequence[float] | torch.Tensor, transformer: WanVACETransformer3DModel, like: torch.Tensor
) -> list[torch.Tensor]:
    """Return one number per VACE layer, in the activations' type, as WanVACEPipeline gives them."""
    layers = len(transformer.config.vace_layers)
    numbers = torch.as_tensor(scale).to(device=like.device, dtype=like.dtype)
    numbers = numbers.expand(layers) if numbers.ndim == 0 else numbers
    if numbers.shape != (layers,):
        raise ValueError(f"scale has {numbers.numel()} numbers; the transformer has {layers} VACE layers.")
    return list(numbers.unbind())


def _begin(
    transformer: WanVACETransformer3DModel,
    latents: list[torch.Tensor],
    timestep: torch.Tensor,
    embeds: Sequence[torch.Tensor],
    control: list[torch.Tensor],
) -> list[_Branch]:
    """Embed the inputs; what prompts share is embedded, and held, once."""
    branches: list[_Branch] = []
    for index, embed in enumerate(embeds):
        same = index > 0 and latents[index] is latents[0] and control[index] is control[0]
        if same:
            hidden, stream = branches[0].hidden, branches[0].control
        else:
            hidden = transformer.patch_embedding(latents[index]).flatten(2).transpose(1, 2)
            stream = _pad(transformer.vace_patch_embedding(control[index]).flatten(2).transpose(1, 2), hidden)
        temb, time, text, _ = transformer.condition_embedder(timestep, embed, None)
        branches.append(_Branch(hidden, stream, text, temb, time.unflatten(1, (6, -1))))
    return branches


def _pad(stream: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bring the control stream to the video's number of tokens with zeros behind it."""
    missing = stream.new_zeros(stream.size(0), like.size(1) - stream.size(1), stream.size(2))
    return torch.cat([stream, missing], dim=1)


def _add_hint(
    vace: torch.nn.Module,
    branch: _Branch,
    start: torch.Tensor | None,
    rotary: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
) -> None:
    """Take the control stream through a VACE block and add its hint to the video's tokens."""
    # A function of its own, so that no hint outlives it while the next prompt's is made.
    hint, branch.control = vace(start, branch.text, branch.control, branch.time, rotary)
    branch.hidden = branch.hidden + hint * scale


def _finish(transformer: WanVACETransformer3DModel, branch: _Branch, shape: torch.Size) -> torch.Tensor:
    """Return the output head's patches, put together to latents of `shape`'s size."""
    shift, scale = (transformer.scale_shift_table + branch.temb.unsqueeze(1)).chunk(2, dim=1)
    hidden = branch.hidden
    hidden = (transformer.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    patches = transformer.proj_out(hidden)
    frame, row, column = transformer.config.patch_size
    frames, height, width = shape[2] // frame, shape[3] // row, shape[4] // column
    patches = patches.reshape(shape[0], frames, height, width, frame, row, column, -1)
    return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


BACKEND = "inductor"  # torch's name of its compiler


def why_not(choice: PhasePlan, device: str) -> str:
    """Return why blocks are not compiled where that was asked for; "" where they are."""
    if not device.startswith("cuda"):
        return "the device is no card"
    if choice.placement != "resident":
        return "the weights are not all on the card, and streaming swaps them under the compiled code"
    return ""


@contextmanager
def compiled(transformer: WanVACETransformer3DModel) -> Iterator[None]:
    """Have `torch.compile` run the blocks inside the block; the model is as it was behind it.

    Args:
        transformer: on the device it computes on.
    """
    blocks = block_order(transformer)
    for block in blocks:
        block.compile(backend=BACKEND)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
