"""In-between frames by optical flow: both frames are warped along the motion, and each is taken where it is seen.

OpenCV's dense inverse search (DIS) measures the motion, which is projected to the time of a new frame, as
in Baker et al., A Database and Evaluation Methodology for Optical Flow (2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

CUT_SIDE = 192  # pixels of the longer side at which frames are compared to find a cut
UNEXPLAINED = 0.1  # of the range of brightness; what differs by more after motion is accounted for is new
AGREEMENT = 1.0  # pixels by which two motions may differ and be half taken for the same
LEAST_SHARE = 0.1  # of a frame that does not seem to show a place: the motion may be wrong, and both are then mixed
SMOOTHED = 5  # pixels of the median over the motion, which removes single ones that go astray


def brightness(frame: Floats) -> Bytes:
    """Return a frame [H, W, 3] in 0..1 as gray bytes."""
    gray: Bytes = cv2.cvtColor((np.clip(frame, 0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return gray


def new_share(before: Bytes, after: Bytes) -> float:
    """Return which share of a picture the one before it does not explain, by motion or by brightness: 1 at a cut."""
    factor = min(1.0, CUT_SIDE / max(before.shape))
    small = [cv2.resize(one, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) for one in (before, after)]
    if min(small[0].shape) < 16:  # smaller than the patches of the search
        explained = small[0]
    else:
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        explained = _sampled(small[0], search.calc(small[1], small[0], None))
    difference = small[1].astype(np.float32) - explained
    # A flash or a fade changes all of the picture alike, and is no cut.
    difference -= np.median(difference)
    return float((np.abs(difference) > UNEXPLAINED * 255).mean())


@dataclass
class FlowPair:
    """Two frames and the motion between them.

    Attributes:
        frames: [H, W, 3] in 0..1.
        flows: motion of each in pixels, to the other one: [H, W, 2] to the right and down.
    """

    frames: tuple[Floats, Floats]
    flows: tuple[Floats, Floats]

    @classmethod
    def measured(cls, frames: tuple[Floats, Floats], grays: tuple[Bytes, Bytes]) -> FlowPair:
        """Return the pair with its motion."""
        if min(grays[0].shape) < 16:
            still = np.zeros((*grays[0].shape, 2), np.float32)
            return cls(frames, (still, still))
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return cls(frames, (search.calc(*grays, None), search.calc(*grays[::-1], None)))

    def at(self, time: float) -> Floats:
        """Return the frame [H, W, 3] at a time between 0, the first, and 1, the second."""
        motion = np.dstack([cv2.medianBlur(one, SMOOTHED) for one in cv2.split(self._motion(time))])
        weights = [
            share * (self._agreement(side, motion, time) + LEAST_SHARE) for side, share in ((0, 1 - time), (1, time))
        ]
        total = weights[0] + weights[1]
        pictures = [_sampled(frame, self._offset(side, motion, time)) for side, frame in enumerate(self.frames)]
        made: Floats = sum(
            picture * (weight / total)[..., None] for picture, weight in zip(pictures, weights, strict=True)
        ).astype(np.float32)
        return made

    @staticmethod
    def _offset(side: int, motion: Floats, time: float) -> Floats:
        """Return where places of the new frame are in one of the two, as offsets."""
        offset: Floats = motion * np.float32(-time if side == 0 else 1 - time)
        return offset

    def _agreement(self, side: int, motion: Floats, time: float) -> Floats:
        """Return where one of the two shows what moves like this, 0..1: elsewhere something else covers it there."""
        own = _sampled(self.flows[side], self._offset(side, motion, time))
        difference = own - motion if side == 0 else own + motion
        distance = (difference**2).sum(axis=-1)
        agreement: Floats = np.exp2(-distance / (AGREEMENT**2 * (1 + 0.01 * (motion**2).sum(axis=-1))))
        return agreement

    def _motion(self, time: float) -> Floats:
        """Return the motion [H, W, 2] from the first frame to the second, of what is at each place in the new one."""
        height, width = self.flows[0].shape[:2]
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        targets, motions, errors = [], [], []
        for side, flow in enumerate(self.flows):
            to_other = flow
            back = _sampled(self.flows[1 - side], to_other)
            error = ((to_other + back) ** 2).sum(axis=-1)
            reached = time if side == 0 else 1 - time
            # Only what both frames show: the motion of what comes into sight or goes is a guess of the search.
            sure = error < 1 + 0.01 * (to_other**2).sum(axis=-1)
            x, y = columns[sure] + reached * to_other[sure, 0], rows[sure] + reached * to_other[sure, 1]
            for right in (0, 1):
                for down in (0, 1):
                    column, row = np.floor(x).astype(np.intp) + right, np.floor(y).astype(np.intp) + down
                    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                    targets.append((row * width + column)[inside])
                    motions.append((to_other if side == 0 else -to_other)[sure][inside])
                    # The nearest of the four places around counts most.
                    distance = np.abs(column - x) + np.abs(row - y)
                    errors.append((error[sure] + distance)[inside])
        return self._filled(np.concatenate(targets), np.concatenate(motions), np.concatenate(errors), time)

    def _filled(self, targets: Any, motions: Any, errors: Any, time: float) -> Floats:
        height, width = self.flows[0].shape[:2]
        motion = np.zeros((height * width, 2), np.float32)
        known: Any = np.zeros(height * width, bool)
        # Of several that arrive at one place the last one stays, and that is the surest.
        order = np.argsort(-errors, kind="stable")
        motion[targets[order]] = motions[order]
        known[targets] = True
        found: Floats = motion.reshape(height, width, 2)
        if not known.all() and known.any():
            found = self._with_holes_filled(found, known.reshape(height, width), time)
        return found

    def _with_holes_filled(self, motion: Floats, known: Any, time: float) -> Floats:
        """Return motion with that of a neighbour in each hole: of the four around, the one that a frame agrees with.

        Beside a thing that moves, holes belong to what it uncovers or covers, not to the thing.
        """
        best: Floats = motion.copy()
        most = np.full(known.shape, -1.0, np.float32)
        for axis, turned in ((1, False), (1, True), (0, False), (0, True)):
            candidate, found = _nearest(motion, known, axis, turned)
            agreement = np.maximum(self._agreement(0, candidate, time), self._agreement(1, candidate, time))
            better = ~known & found & (agreement > most)
            best[better], most[better] = candidate[better], agreement[better]
        return best


def _nearest(motion: Floats, known: Any, axis: int, turned: bool) -> tuple[Floats, Any]:
    """Return at each place the last known motion before it along an axis, or after it, and where there is one."""
    if turned:
        motion, known = np.flip(motion, axis), np.flip(known, axis)
    shape = [1, 1]
    shape[axis] = -1
    places = np.where(known, np.arange(known.shape[axis]).reshape(shape), -1)
    last = np.maximum.accumulate(places, axis=axis)
    candidate = np.take_along_axis(motion, np.maximum(last, 0)[..., None], axis=axis)
    found = last >= 0
    return (np.flip(candidate, axis), np.flip(found, axis)) if turned else (candidate, found)


def _sampled(picture: Any, offsets: Floats) -> Any:
    """Return a picture [H, W(, C)] read at every place plus an offset; beyond the edges they go on."""
    height, width = offsets.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return cv2.remap(
        picture, columns + offsets[..., 0], rows + offsets[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
