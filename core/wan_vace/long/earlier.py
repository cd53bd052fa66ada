"""The windows that the next one is begun on: what this run has made is in memory, the rest is read from the shelf."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .colour import Colours, colours_of_all
from .shelf import Finished, Shelf

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass
class Earlier:
    """Windows by their key. One is in memory: the last that was made."""

    shelf: Shelf
    _key: str | None = None
    _window: Finished | None = None
    _colours: dict[str, Colours] = field(default_factory=dict)
    _pictures: dict[str, torch.Tensor] = field(default_factory=dict)

    def hold(self, key: str, window: Finished) -> None:
        """Keep a window that was made, in place of the one before it."""
        self._key, self._window = key, window

    def window(self, key: str) -> Finished:
        """Return a window. Raises PiyingError when it cannot be read."""
        return self._window if self._window is not None and key == self._key else self.shelf.get(key)

    def colours(self, key: str) -> Colours:
        """Return the colours of a window; it is looked at once."""
        if key not in self._colours:
            with closing(self._frames(key)) as frames:
                self._colours[key] = colours_of_all(frames)
        return self._colours[key]

    def first_frame(self, key: str) -> torch.Tensor:
        """Return the first frame of a window, float32 [h, w, 3] in 0..1; it is looked at once."""
        if key not in self._pictures:
            with closing(self._frames(key)) as frames:
                self._pictures[key] = torch.from_numpy(next(frames)).float() / 255
        return self._pictures[key]

    def _frames(self, key: str) -> Generator[npt.NDArray[np.uint8], None, None]:
        if self._window is not None and key == self._key:
            yield from self._window.frames.numpy()
        else:
            yield from self.shelf.read(key)
