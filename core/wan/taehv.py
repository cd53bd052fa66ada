"""TAEHV: a decoder of Wan's latents with a twentieth of the VAE's work (https://github.com/madebyollin/taehv, MIT).

It takes the latents as the sampler leaves them (LightX2V's LightTAE: in the scale of the VAE) and makes frames one
after the other: each block sees its own input of the frame before beside that of this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from ..checkpoints.assemble import require_finite_weights
from ..errors import PiyingError
from ..executor.model_cache import cached_model
from ..files.file_state import file_state
from ..postprocessing.model_files import read_weights
from .latents import FRAME_STEP, STRIDE, video_frames

if TYPE_CHECKING:
    from ..executor.retry import FiniteCheck
    from ..host.base import Host
    from .decode import OnStep

CLAMPED = 3.0  # latents are brought softly between -3 and 3
BLOCKS = 3  # of one width, before each of the layers that make pictures larger
IN_TIME = (1, 2, 2)  # frames that each of these makes of one
TRIMMED = FRAME_STEP - 1  # frames in front: a video's first latent frame stands for one frame and not for four


class _MemoryBlock(nn.Module):
    """Three convolutions over what a frame and the one before it have; the names are those in the files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv(torch.cat([x, before], 1)) + x)


class _MoreFrames(nn.Module):
    """Makes several frames of one."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.conv(x)
        return made


class _Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / CLAMPED) * CLAMPED


class Taehv(nn.Module):
    """The decoder alone; `decoder` has the layers in the order of the files.

    Attributes:
        patch: pixels of a side that the last layer makes at once: 1, or 2 of Wan2.2-TI2V's.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], patch: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Clamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for width, narrower, frames in zip(widths, widths[1:], IN_TIME, strict=False):
            layers += [_MemoryBlock(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), _MoreFrames(width, frames)]
            layers += [nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)
        self.channels, self.patch = channels, patch

    def frames(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the frames [1, 3, H, W] in 0..1 of latents [1, z, T, h, w], 4T-3 of them, one at a time in memory."""
        seen: dict[int, torch.Tensor] = {}
        number = 0
        for latent in latents.unbind(2):
            for frame in self._through(latent, 0, seen):
                number += 1
                if number > TRIMMED:
                    shown = functional.pixel_shuffle(frame, self.patch) if self.patch > 1 else frame
                    yield shown.clamp(0, 1)

    def _through(self, x: torch.Tensor, place: int, seen: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield what becomes of one frame from a layer on; `seen` has what each block was given before."""
        for index in range(place, len(self.decoder)):
            layer = self.decoder[index]
            if isinstance(layer, _MemoryBlock):
                before = seen.get(index)
                seen[index], x = x, layer(x, torch.zeros_like(x) if before is None else before)
            elif isinstance(layer, _MoreFrames) and layer.frames > 1:
                for one in layer(x).chunk(layer.frames, 1):
                    yield from self._through(one, index + 1, seen)
                return
            else:
                x = layer(x)
        yield x


def read_taehv(path: Path) -> Taehv:
    """Return the decoder of a file, in fp32 and main memory.

    Raises:
        PiyingError: it is damaged, or none for Wan.
    """
    weights = {name: one for name, one in read_weights(path).items() if name.startswith("decoder.")}
    try:
        channels = weights["decoder.1.weight"].shape[1]
        # Each stage's last convolution makes the width of the next one.
        stages = [3 + (BLOCKS + 3) * number for number in range(len(IN_TIME))]
        widths = (
            weights["decoder.1.weight"].shape[0],
            *(weights[f"decoder.{at + 5}.weight"].shape[0] for at in stages),
        )
        patch = {3: 1, 12: 2}[weights[f"decoder.{stages[-1] + 7}.weight"].shape[0]]
        with torch.device("meta"):
            network = Taehv(channels, widths, patch)
        for at, layer in enumerate(network.decoder):
            if isinstance(layer, _MoreFrames):  # a file may make more frames than are wanted; the last ones count
                name = f"decoder.{at}.conv.weight"
                weights[name] = weights[name][-layer.conv.out_channels :]
        network.load_state_dict({name: one.float() for name, one in weights.items()}, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:160]
        raise PiyingError(
            f"{path}: is no TAEHV decoder of Wan, such as taew2_1.safetensors ({reason}). Choose another file."
        ) from error
    require_finite_weights(network, path)
    return network.eval().requires_grad_(False)


def cached_taehv(path: Path, dtype: torch.dtype, host: Host) -> Taehv:
    """Return the decoder of a file in a number type, in host memory; for errors see `read_taehv`."""
    key = path, file_state(path), str(dtype)
    return cached_model("taehv", key, lambda: read_taehv(path).to(dtype), host, size=path.stat().st_size)


def decode_fast(
    network: Taehv, latents: torch.Tensor, on_step: OnStep, check: FiniteCheck | None = None
) -> torch.Tensor:
    """Return frames [N, H, W, 3] float32 in 0..1 on the CPU.

    Args:
        network: on the device it computes on.
        latents: [1, z, T, h, w] in the scale that the file was made for.
        on_step: called with how many frames are done.
        check: called with each frame, which is brought to 0..1 and may still be no number.
    """
    weight = next(network.parameters())
    side = STRIDE * network.patch
    count, height, width = video_frames(latents.shape[2]), latents.shape[3] * side, latents.shape[4] * side
    frames = torch.empty(count, height, width, 3)
    for index, frame in enumerate(network.frames(latents.to(weight.device, weight.dtype))):
        if check is not None:
            check(frame, f"in frame {index}")
        frames[index] = frame[0].permute(1, 2, 0).float().cpu()
        on_step(index + 1)
    return frames
