"""Fast previews: pictures of the steps by TAEHV in place of the linear map from latent channels to colour."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ..executor.retry import free_memory
from ..main_memory import is_out_of_memory
from ..preview import LatentPreview, resized
from .latents import FRAME_STEP

if TYPE_CHECKING:
    from PIL.Image import Image

    from .taehv import Taehv

log = logging.getLogger("piying")


class FastPreview(LatentPreview):
    """Previews that TAEHV decodes; where it runs out of memory, the linear ones from there on.

    Args:
        linear: the map that stands in, with the place of the video in the latents.
        read: gives the decoder in main memory; called at the first preview, which a run that nobody looks at never
            makes.
        device: of torch, on which it decodes.
        scaled: brings latents [1, z, T, h, w] to the scale that the decoder reads.
    """

    def __init__(
        self,
        linear: LatentPreview,
        read: Callable[[], Taehv],
        device: str,
        scaled: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents,
    ) -> None:
        super().__init__(linear.colours, linear.scheduler, skip=linear.skip, stride=linear.stride)
        self._read, self._device, self._scaled, self._failed = read, device, scaled, False

    @cached_property
    def _network(self) -> Taehv:
        network = self._read()
        # A copy: the one in main memory stays there for the runs that follow.
        return network if self._device == "cpu" else copy.deepcopy(network).to(self._device)

    def release(self) -> None:
        """Have the decoder leave the device; previews that are asked for later are linear."""
        self._failed = True
        self.__dict__.pop("_network", None)

    def image(self, latents: torch.Tensor) -> Image:
        """Return a picture of the middle of a video, in its full size."""
        clean = self._frames(latents)
        middle = clean.shape[0] // 2
        # With the one before it, from which it goes on.
        around = clean[max(0, middle - 1) : middle + 1]
        made = self._decoded(around, 0, around.shape[0] - 1)
        return super().image(latents) if made is None else made[0]

    def frames(self, latents: torch.Tensor, side: int, most: int) -> list[Image]:
        """Return up to `most` frames, evenly taken; the longest side of each is `side` pixels."""
        clean = self._frames(latents)
        made = self._decoded(clean, side, 0, -(-clean.shape[0] // most))
        return super().frames(latents, side, most) if made is None else made

    def _decoded(self, clean: torch.Tensor, side: int, first: int, step: int = 1) -> list[Image] | None:
        """Return the frames of latents [T, z, H, W] from the `first` on, one for every `step`; None where that failed.

        Args:
            side: pixels of the longest side; 0 for the size of the video.
        """
        if self._failed:
            return None
        try:
            return list(self._pictures(clean, side, first, step))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
        log.warning("The preview by TAEHV ran out of memory (%s): the steps that follow have linear ones.", reason)
        self.release()
        free_memory()
        return None

    @torch.no_grad()
    def _pictures(self, clean: torch.Tensor, side: int, first: int, step: int) -> Iterator[Image]:
        network = self._network
        weight = next(network.parameters())
        latents = self._scaled(clean.movedim(0, 1)[None]).to(weight.device, weight.dtype)
        for number, frame in enumerate(network.frames(latents)):
            # The last frame that each of the latent frames makes.
            index, rest = divmod(number, FRAME_STEP)
            if rest == 0 and index >= first and (index - first) % step == 0:
                pixels = (frame[0].float().nan_to_num(0.0) * 255).byte().movedim(0, -1).cpu()
                yield resized(pixels, side / max(pixels.shape[:2]) if side else 1.0)
