"""Wan's transformers, with VACE and without: one prediction for several prompts at once, a block at a time.

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
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    from ..parallel.sequence import SequenceSplit
    from ..planner.plan_types import PhasePlan
    from .nag import NAGProcessor
    from .split_attention import SplitAttention
    from .step_cache import StepCache

    Transformer = WanVACETransformer3DModel | WanTransformer3DModel
    _Pair = tuple[int, torch.nn.Module, torch.nn.Module | None]


@dataclass
class _Branch:
    """The state of one prompt between blocks, or of all prompts in one batch.

    Attributes:
        hidden: the video's tokens [batch, tokens, dim].
        control: the VACE blocks' own stream, of the same shape; None without VACE.
        text: the prompt's tokens [batch, 512, dim], behind those of pictures where the model reads such.
        temb: the timestep [batch, dim], for the output head; [batch, tokens, dim] where each token has its own.
        time: the timestep [batch, 6, dim], for the blocks, or [batch, tokens, 6, dim].
        skipped: main blocks that it leaves out.
        guided: rows of it whose cross-attention is guided.
    """

    hidden: torch.Tensor
    control: torch.Tensor | None
    text: torch.Tensor
    temb: torch.Tensor
    time: torch.Tensor
    skipped: frozenset[int] = frozenset()
    guided: int = 0


def block_order(transformer: Transformer) -> list[torch.nn.Module]:
    """Return the blocks in the order in which `predict` runs them."""
    order = []
    for _, main, vace in _pairs(transformer):
        order += [main] if vace is None else [main, vace]
    return order


def predict(
    transformer: Transformer,
    latents: torch.Tensor | Sequence[torch.Tensor],
    timestep: torch.Tensor,
    *,
    embeds: Sequence[torch.Tensor],
    control: torch.Tensor | Sequence[torch.Tensor] | None = None,
    picture: torch.Tensor | None = None,
    scale: float | Sequence[float] | torch.Tensor = 1.0,
    check_cancelled: Callable[[], None] = lambda: None,
    cache: StepCache | None = None,
    batched: bool = False,
    skipped: Sequence[frozenset[int]] = (),
    nag: NAGProcessor | None = None,
    negative: torch.Tensor | None = None,
    split: SplitAttention | None = None,
) -> list[torch.Tensor]:
    """Predict the velocity for each prompt.

    Equals `transformer(latents, timestep, embeds[i], …)` called for one prompt after the other, with
    `control_hidden_states=control` or `encoder_hidden_states_image=picture`, without gradient checkpointing.

    Args:
        transformer: its weights may be on the device or be streamed there in `block_order`.
        latents: [batch, in_channels, frames, height / 8, width / 8] in the transformer's type;
            one tensor for all prompts, or one for each.
        timestep: [batch], or [batch, tokens] where each token has its own.
        embeds: one [batch, 512, text_dim] per prompt (the prompt and, with guidance, the negative one).
        control: [batch, vace_in_channels, frames, height / 8, width / 8]; one for all, one each, or None without VACE.
        picture: what an image encoder has made of pictures [pictures, tokens, image_dim]; None for models without.
        scale: strength of the control; one number for all VACE layers, or one per layer.
        check_cancelled: called before each block; what it raises ends the prediction.
        cache: compares this step with earlier ones; the result may then be a forecast.
        batched: take all prompts through a block in one batch: fewer operations, more memory, other roundings.
        skipped: for each prompt the main blocks that are left out, none where it is empty; not for batches.
        nag: guides the cross-attention of all prompts but the negative one, `negative` [1, 512, text_dim].
        split: attends to the tokens of all ranks, of which this one then has a share between the blocks.

    Returns:
        One tensor of the latents' shape per prompt.

    Raises:
        ValueError: `scale` has not one number per VACE layer.
    """
    prompts = len(embeds)
    latents = [latents] * prompts if isinstance(latents, torch.Tensor) else list(latents)
    controls = [control] * prompts if control is None or isinstance(control, torch.Tensor) else list(control)
    in_batch = prompts if batched else 1
    if batched:
        latents, embeds, controls = [torch.cat(latents)], [torch.cat(tuple(embeds))], _together(controls)
        timestep = timestep.repeat(in_batch, *[1] * (timestep.ndim - 1))
    scales = iter(_layer_scales(scale, transformer, latents[0]))
    branches = _embed_inputs(transformer, latents, timestep, embeds=embeds, controls=controls, picture=picture)
    shares, rotary = _shared(split, branches, transformer.rope(latents[0]))
    for branch, left_out, embed in zip(branches, skipped or [frozenset()] * prompts, embeds, strict=False):
        # In a batch the prompt comes before the negative one.
        branch.skipped, branch.guided = left_out, int(batched or embed is not negative)
    if nag is not None:
        nag.negative = transformer.condition_embedder.text_embedder(negative)
    pairs = _pairs(transformer)

    def run(some: Sequence[_Pair]) -> None:
        for pair in some:
            _run_pair(pair, branches, rotary=rotary, scales=scales, check_cancelled=check_cancelled, nag=nag)

    if cache is not None:
        before = _tokens(branches, in_batch, shares)
        run(pairs[:1])
        if cache.skips(before, _tokens(branches, in_batch, shares)):
            return cache.forecast(prompts)
        del before
        pairs = pairs[1:]
    run(pairs)
    made = [
        _project_out(transformer, branch, one.shape, shares) for branch, one in zip(branches, latents, strict=True)
    ]
    results = [prompt for result in made for prompt in result.chunk(in_batch)]
    if cache is not None:
        cache.add(results)
    return results


def _tokens(branches: list[_Branch], in_batch: int, shares: SequenceSplit | None) -> list[torch.Tensor]:
    """Return each prompt's tokens as they are between two blocks; of a share those that are of the video."""
    own = slice(None if shares is None else shares.own)
    return [prompt for branch in branches for prompt in branch.hidden[:, own].chunk(in_batch)]


def _together(controls: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Return the controls of all prompts in one batch; None where there are none."""
    found = [one for one in controls if one is not None]
    return [torch.cat(found) if found else None]


def _pairs(transformer: Transformer) -> list[_Pair]:
    """Return each main block, its number first, with the VACE block whose hint is added to its output."""
    vace, layers = iter(getattr(transformer, "vace_blocks", ())), transformer.config.get("vace_layers", ())
    return [(index, block, next(vace) if index in layers else None) for index, block in enumerate(transformer.blocks)]


def _run_pair(
    pair: _Pair,
    branches: list[_Branch],
    *,
    rotary: tuple[torch.Tensor, torch.Tensor],
    scales: Iterator[torch.Tensor],
    check_cancelled: Callable[[], None],
    nag: NAGProcessor | None,
) -> None:
    """Take every prompt through a main block, then through the VACE block whose hint is added after it."""
    index, main, vace = pair
    # Of the VACE blocks only the one with an input projection, the first, reads the video's tokens,
    # and as they were before any main block.
    reads = getattr(vace, "proj_in", None) is not None
    starts = [branch.hidden if reads else None for branch in branches]
    check_cancelled()
    for branch in branches:
        if nag is not None:
            nag.rows = branch.guided
        if index not in branch.skipped:
            branch.hidden = main(branch.hidden, branch.text, branch.time, rotary)
    if vace is None:
        return
    check_cancelled()
    scale = next(scales)
    for branch, start in zip(branches, starts, strict=True):
        if nag is not None:
            nag.rows = branch.guided
        _add_hint(vace, branch, start, rotary=rotary, scale=scale)


def _add_hint(
    vace: torch.nn.Module,
    branch: _Branch,
    start: torch.Tensor | None,
    *,
    rotary: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
) -> None:
    """Take the control stream through a VACE block and add its hint to the video's tokens."""
    # A function of its own, so that no hint outlives it while the next prompt's is made.
    hint, branch.control = vace(start, branch.text, branch.control, branch.time, rotary)
    branch.hidden = branch.hidden + hint * scale


def _layer_scales(
    scale: float | Sequence[float] | torch.Tensor, transformer: Transformer, like: torch.Tensor
) -> list[torch.Tensor]:
    """Return one number per VACE layer, in the activations' type, as WanVACEPipeline gives them."""
    layers = len(transformer.config.get("vace_layers", ()))
    numbers = torch.as_tensor(scale).to(device=like.device, dtype=like.dtype)
    numbers = numbers.expand(layers) if numbers.ndim == 0 else numbers
    if numbers.shape != (layers,):
        raise ValueError(f"scale has {numbers.numel()} numbers; the transformer has {layers} VACE layers.")
    return list(numbers.unbind())


def _embed_inputs(
    transformer: Transformer,
    latents: list[torch.Tensor],
    timestep: torch.Tensor,
    *,
    embeds: Sequence[torch.Tensor],
    controls: Sequence[torch.Tensor | None],
    picture: torch.Tensor | None,
) -> list[_Branch]:
    """Embed the inputs; what prompts share is embedded, and held, once."""
    branches: list[_Branch] = []
    # The embedder wants a list of timesteps, and how many of them are of one video.
    each = timestep.shape[1] if timestep.ndim == 2 else None
    for index, embed in enumerate(embeds):
        if index > 0 and latents[index] is latents[0] and controls[index] is controls[0]:
            hidden, stream = branches[0].hidden, branches[0].control
        else:
            hidden = transformer.patch_embedding(latents[index]).flatten(2).transpose(1, 2)
            stream = _control_stream(transformer, controls[index], hidden)
            # As diffusers has them, which matters to the last bit.
            hidden = hidden if stream is not None else hidden.contiguous()
        temb, time, text, seen = transformer.condition_embedder(timestep.flatten(), embed, picture, each)
        if seen is not None:
            text = torch.cat([seen.expand(len(text), -1, -1), text], dim=1)
        branches.append(_Branch(hidden, stream, text, temb, time.unflatten(-1, (6, -1))))
    return branches


def _control_stream(
    transformer: Transformer, control: torch.Tensor | None, hidden: torch.Tensor
) -> torch.Tensor | None:
    """Return a control's tokens, with zeros behind them where the video has more."""
    if control is None:
        return None
    stream: torch.Tensor = transformer.vace_patch_embedding(control).flatten(2).transpose(1, 2)
    missing = stream.new_zeros(stream.size(0), hidden.size(1) - stream.size(1), stream.size(2))
    return torch.cat([stream, missing], dim=1)


def _shared(
    split: SplitAttention | None, branches: list[_Branch], rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[SequenceSplit | None, tuple[torch.Tensor, torch.Tensor]]:
    """Leave each branch this rank's share of all that is of single tokens, where ranks share them.

    Returns:
        The shares, and that of the rotary embedding; None and all of it where there is one rank.
    """
    if split is None:
        return None, rotary
    shares = split.begin(branches[0].hidden.shape[1])
    first = branches[0]
    whole = first.hidden, first.control
    for branch in branches:
        # What prompts have in common is held once, as before.
        is_common = branch is not first and branch.hidden is whole[0] and branch.control is whole[1]
        if is_common:
            branch.hidden, branch.control = first.hidden, first.control
        else:
            branch.hidden = shares.take(branch.hidden)
            branch.control = None if branch.control is None else shares.take(branch.control)
        if branch.temb.ndim == 3:
            branch.temb, branch.time = shares.take(branch.temb), shares.take(branch.time)
    return shares, (shares.take(rotary[0]), shares.take(rotary[1]))


def _project_out(
    transformer: Transformer, branch: _Branch, shape: torch.Size, shares: SequenceSplit | None = None
) -> torch.Tensor:
    """Return the output head's patches, put together to latents of `shape`'s size."""
    # One row for all tokens, or one for each.
    rows = branch.temb if branch.temb.ndim == 3 else branch.temb.unsqueeze(1)
    shift, scale = (part.squeeze(2) for part in (transformer.scale_shift_table + rows.unsqueeze(2)).chunk(2, dim=2))
    hidden = branch.hidden
    hidden = (transformer.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    patches: torch.Tensor = transformer.proj_out(hidden)
    if shares is not None:
        patches = shares.join(patches)
    frame, row, column = transformer.config["patch_size"]
    frames, height, width = shape[2] // frame, shape[3] // row, shape[4] // column
    patches = patches.reshape(shape[0], frames, height, width, frame, row, column, -1)
    return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


BACKEND = "inductor"  # torch's name of its compiler


def reason_not_to_compile(choice: PhasePlan, device: str) -> str:
    """Return why blocks cannot be compiled; "" where they can."""
    if not device.startswith("cuda"):
        return "the device is no card"
    if choice.placement != "resident":
        return "the weights are not all on the card, and streaming swaps them under the compiled code"
    return ""


@contextmanager
def compiled_blocks(transformer: Transformer) -> Iterator[None]:
    """Have `torch.compile` run the model's blocks inside the `with` block; afterwards the model is as it was.

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
            # torch has no way back but this: the attribute that Module.compile sets.
            block._compiled_call_impl = None
