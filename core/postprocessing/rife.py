"""RIFE: the network that makes in-between frames (Huang et al., 2022), versions 4.7 to 4.26, by its weights' shapes.

The authors publish a version's code with its weights (https://github.com/hzwer/Practical-RIFE, MIT). What differs from
version to version is read from the shapes: how many blocks refine the motion, how wide they are, whether one hands
features on to the next, and how a frame's features are made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..checkpoints.assemble import require_finite_weights
from ..errors import PiyingError
from ..executor.placement import module_bytes
from ..files.file_state import cached_by_state
from .model_files import read_shapes, read_weights
from .places import Cost, Work, traced_cost

MULTIPLE = 128  # of the sides of a picture, which is padded at the right and the bottom, as the authors do
SLOPE = 0.2  # of LeakyReLU below 0
FLOW, MASK = 4, 1  # channels of the motion of both frames, and of what each of them shows
# The blocks look at pictures so many times smaller.
SCALES = {4: (8, 4, 2, 1), 5: (16, 8, 4, 2, 1)}
LITE_SCALES = (32, 16, 8, 4, 1)  # of 4.25 lite, which is told by the width of its last block
LITE_WIDTH = 24
TRAINING = ("teacher.", "caltime.")  # parts that training needs and files still have


@dataclass(frozen=True)
class RifeShape:
    """What differs from version to version.

    Attributes:
        widths: channels of each block.
        scales: see `SCALES`.
        encoder: (inputs, outputs) of the layers that make a frame's features, the last of which makes them larger.
        encoder_names: of these layers in the file.
        is_linear: whether nothing stands between these layers, as up to version 4.9.
        handed_on: channels that a block hands on to the next one beside motion and mask.
        unused: channels that blocks make and nothing reads.
        groups: of the convolutions inside a block; more than one in some lite versions.
    """

    widths: tuple[int, ...]
    scales: tuple[int, ...]
    encoder: tuple[tuple[int, int], ...]
    encoder_names: tuple[str, ...]
    is_linear: bool
    handed_on: int
    unused: int
    groups: int

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], path: Path) -> RifeShape:
        """Return the shape that a file's weights have.

        Raises:
            PiyingError: they are not those of a version that is known here.
        """
        try:
            widths = tuple(
                weights[f"block{index}.conv0.1.0.weight"].shape[0]
                for index in range(5)
                if f"block{index}.conv0.1.0.weight" in weights
            )
            found = {match[0] for name in weights if (match := re.match(r"encode\.\w+(?=\.weight)", name))}
            # Convolutions but the last, a transposed one, whose inputs come first in the shape.
            names = tuple(sorted(found))
            layers = [weights[f"{name}.weight"].shape for name in names]
            encoder = (*((shape[1], shape[0]) for shape in layers[:-1]), (layers[-1][0], layers[-1][1]))
            features = 2 * encoder[-1][1]
            made = weights["block0.lastconv.0.weight"].shape[1] // 4  # PixelShuffle makes one channel of four
            handed_on = weights["block1.conv0.0.0.weight"].shape[1] - (6 + 1 + MASK + FLOW) - features
            groups = widths[0] // weights["block0.convblock.0.conv.weight"].shape[1]
            scales = LITE_SCALES if widths[-1] == LITE_WIDTH else SCALES[len(widths)]
        except (KeyError, IndexError) as error:
            raise PiyingError(
                f"{path}: is no RIFE model of version 4.7 to 4.26. Choose one of these, or model = optical flow."
            ) from error
        return cls(
            widths=widths,
            scales=scales,
            encoder=encoder,
            encoder_names=names,
            is_linear=names == ("encode.0", "encode.1"),
            handed_on=handed_on,
            unused=made - FLOW - MASK - handed_on,
            groups=groups,
        )


def read_rife(path: Path) -> Rife:
    """Return the network of a file, in fp32 and main memory.

    Raises:
        PiyingError: it is damaged, or of another kind or version.
    """
    network = _with_weights(read_weights(path), path)
    require_finite_weights(network, path)
    return network


def _with_weights(stored: Mapping[str, torch.Tensor], path: Path) -> Rife:
    weights = {
        re.sub(r"^blocks\.(\d)", r"block\1", name): tensor
        for name, tensor in stored.items()
        if not name.startswith(TRAINING)
    }
    shape = RifeShape.of(weights, path)
    with torch.device("meta"):
        network = Rife(shape)
    for index, name in enumerate(shape.encoder_names):
        for kind in ("weight", "bias"):
            weights[f"encoder.{index}.{kind}"] = weights.pop(f"{name}.{kind}", torch.empty(0))
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise PiyingError(
            f"{path}: is no RIFE model of version 4.7 to 4.26 ({reason}). Choose another file."
        ) from error
    return network.eval().requires_grad_(False)


def rife_work(path: Path, height: int, width: int) -> Work:
    """Return what it takes to make a frame of a size, from the file's header.

    Raises:
        PiyingError: it is damaged, or of another kind or version.
    """
    weights, cost = _needs(path)
    tall, wide = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    return Work(weights, cost, tall, wide, can_tile=False)


@cached_by_state
def _needs(path: Path) -> tuple[int, Cost]:
    """Return the bytes of a file's weights, and what their network needs beside them."""

    def run(network: torch.nn.Module, size: tuple[int, int]) -> None:
        assert isinstance(network, Rife)
        frames = torch.empty(2, 1, 3, *size, device="meta").unbind()
        network(frames, (network.features(frames[0]), network.features(frames[1])), 0.5)

    network = _with_weights(read_shapes(path), path)
    with torch.inference_mode():
        return module_bytes(network), traced_cost(network, run)


class _Residual(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.conv(x) * self.beta + x, SLOPE)


class _Block(nn.Module):
    """Refines the motion between two frames; the names of its parts are those in the files."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int) -> None:
        super().__init__()
        half = width // 2
        self.conv0 = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, half, 3, 2, 1), nn.LeakyReLU(SLOPE)),
            nn.Sequential(nn.Conv2d(half, width, 3, 2, 1), nn.LeakyReLU(SLOPE)),
        )
        self.convblock = nn.Sequential(*(_Residual(width, groups) for _ in range(8)))
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 4 * outputs, 4, 2, 1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor, flow: torch.Tensor | None, scale: int) -> torch.Tensor:
        """Return the change of the motion, the mask and what is handed on, [1, outputs, H, W]."""
        x = functional.interpolate(x, scale_factor=1 / scale, mode="bilinear")
        if flow is not None:
            x = torch.cat((x, functional.interpolate(flow, scale_factor=1 / scale, mode="bilinear") / scale), 1)
        made = self.lastconv(self.convblock(self.conv0(x)))
        made = functional.interpolate(made, scale_factor=scale, mode="bilinear")
        return torch.cat((made[:, :FLOW] * scale, made[:, FLOW:]), 1)


class Rife(nn.Module):
    """Makes the frame at a time between two others."""

    def __init__(self, shape: RifeShape) -> None:
        super().__init__()
        *convolutions, (inputs, outputs) = shape.encoder
        strides = (2, *(1 for _ in convolutions[1:]))
        self.encoder = nn.ModuleList(
            nn.Conv2d(*channels, 3, stride, 1) for channels, stride in zip(convolutions, strides, strict=True)
        )
        self.encoder.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1))
        made = FLOW + MASK + shape.handed_on + shape.unused
        for index, width in enumerate(shape.widths):
            # The frames, their features and the time; after the first block also motion, mask and what is handed on.
            given = 6 + 2 * outputs + 1 + (MASK + FLOW + shape.handed_on if index else 0)
            self.add_module(f"block{index}", _Block(given, width, made, shape.groups))
        self.shape = shape

    def features(self, frame: torch.Tensor) -> torch.Tensor:
        """Return what the network sees in a frame [1, 3, H, W] by itself; both pairs of a frame take it."""
        x = frame.clamp(0, 1)
        for index, layer in enumerate(self.encoder):
            x = layer(x if index == 0 or self.shape.is_linear else functional.leaky_relu(x, SLOPE))
        return x

    def forward(
        self, frames: tuple[torch.Tensor, torch.Tensor], features: tuple[torch.Tensor, torch.Tensor], time: float
    ) -> torch.Tensor:
        """Return the frame [1, 3, H, W] at a time between 0 and 1.

        Args:
            frames: [1, 3, H, W] in 0..1, sides multiples of `MULTIPLE`.
            features: of each.
        """
        first, second = (frame.clamp(0, 1) for frame in frames)
        when = torch.full_like(first[:, :1], time)
        warped = first, second
        flow = mask = handed_on = first[:, :0]
        for index, scale in enumerate(self.shape.scales):
            block = self.get_submodule(f"block{index}")
            if index == 0:
                made = block(torch.cat((first, second, *features, when), 1), None, scale)
                flow = made[:, :FLOW]
            else:
                seen = _warped(features[0], flow[:, :2]), _warped(features[1], flow[:, 2:])
                made = block(torch.cat((*warped, *seen, when, mask, handed_on), 1), flow, scale)
                flow = flow + made[:, :FLOW]
            mask = made[:, FLOW : FLOW + MASK]
            handed_on = made[:, FLOW + MASK :][:, : self.shape.handed_on]
            warped = _warped(first, flow[:, :2]), _warped(second, flow[:, 2:])
        share = torch.sigmoid(mask)
        return warped[0] * share + warped[1] * (1 - share)


def _warped(picture: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Return a picture [1, C, H, W] read at every place plus a motion [1, 2, H, W] in pixels."""
    height, width = picture.shape[-2:]
    x = torch.linspace(-1, 1, width, device=picture.device).expand(height, width)
    y = torch.linspace(-1, 1, height, device=picture.device)[:, None].expand(height, width)
    # In the terms of grid_sample the picture goes from -1 to 1.
    grid = torch.stack((x + flow[0, 0] / ((width - 1) / 2), y + flow[0, 1] / ((height - 1) / 2)), -1)
    return functional.grid_sample(picture, grid[None], mode="bilinear", padding_mode="border", align_corners=True)
