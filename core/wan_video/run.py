"""Runs of Wan without VACE: a request, and a first and a last frame where there are such → frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..executor.retry import finite_check
from ..executor.tensor_cache import TensorCache, digest
from ..host.base import Host
from ..wan.distilled import with_distilled
from ..wan.latents import latent_frames
from ..wan.long.timeline import TIMES_ARE_WORDS, has_times
from ..wan.model import load
from ..wan.request import WanRequest
from ..wan.video_run import VideoRun, execute
from .conditioning import BesideLatents, GivenFrames, InLatents, encode_beside, encode_first, look
from .frame_inputs import FrameInputs, check_frames, default_boundary, frame_inputs
from .phases import FramesWork, phases
from .request import check_request, shaped_like

if TYPE_CHECKING:
    import torch
    from transformers import CLIPVisionModel

    from ..image_sizes import Fit
    from ..planner.plan_types import PhasePlan, Plan
    from ..wan.conditioning import Encode

log = logging.getLogger("piying")

MAX_ENCODED = 8  # frames of runs that are kept as they were encoded


def sample(
    handle: ModelHandle,
    request: WanRequest,
    host: Host,
    *,
    first: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    fit: Fit = "crop",
    shaped: bool = False,
    latent: Mapping[str, Any] | None = None,
    on_latent: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[torch.Tensor, float, dict[str, Any]]:
    """Make one video.

    Equals `WanPipeline.__call__`, or with frames `WanImageToVideoPipeline.__call__`, on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Args:
        handle: the model.
        request: what to make.
        host: the program around the run.
        first, last: pictures [n, h, w, c] in 0..1, of which the first and the last one are taken, that the video
            begins and ends with.
        fit: how they come to the video's size.
        shaped: whether the video has the shape of the first of them, and as many pixels as the request at most.
        latent: ComfyUI's LATENT to begin from, where the first step is a later one; see `wan.start_latents`.
        on_latent: called with the video's LATENT.

    Returns:
        Frames as a float32 CPU tensor [num_frames, height, width, 3] in 0..1, how many are played in a second, and a
        record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the frames, the model or the device cannot be used, or no plan fits the machine; the
            text says why.
    """
    handle, request = with_distilled(handle, request, host)
    model = load(handle, host)
    inputs, frames = frame_inputs(model.found), GivenFrames.of(first, last)
    check_request(request, inputs)
    has = {"has_first": frames.first is not None, "has_last": frames.last is not None}
    check_frames(inputs, model.found.name, **has, num_frames=request.num_frames, loop=request.context.loop)
    if shaped and frames.pictures:
        request = _shaped(request, frames, inputs)
    noted = {"note": TIMES_ARE_WORDS} if has_times(request.prompt) else {}
    if noted:
        log.warning("%s", TIMES_ARE_WORDS)
    frames = frames.fitted(request.width, request.height, fit)
    model = replace(model, boundary=default_boundary(inputs))
    run = FramesRun.of(handle, request, model, host, latent=latent, inputs=inputs, frames=frames)
    work = FramesWork.of_frames(request, inputs, first=has["has_first"], last=has["has_last"], **run.planned)
    made, record = execute(run, handle, phases(model.components(), work), work)
    if on_latent is not None:
        on_latent(run.latent())
    given = [name.removeprefix("has_") for name, is_given in has.items() if is_given]
    return made, inputs.fps, record | ({"given_frames": given, "fit": fit} if given else {}) | noted


def _shaped(request: WanRequest, frames: GivenFrames, inputs: FrameInputs) -> WanRequest:
    """Return a request for a video in the shape of its first given frame."""
    height, width, _ = frames.pictures[0].shape
    size = shaped_like(request.width, request.height, (width, height), 2 * inputs.stride)
    if size != (request.width, request.height):
        log.info("From the given frame, %d×%d: width %d, height %d.", width, height, *size)
    return replace(request, width=size[0], height=size[1])


@dataclass
class FramesRun(VideoRun):
    """A run with a first or a last frame, or from text alone.

    Attributes:
        inputs: what the model reads.
        frames: at the video's size.
        picture: what an image encoder has made of them.
        encoded: the frames as the VAE encodes them, see `conditioning`; None where there is none.
    """

    inputs: FrameInputs = field(kw_only=True)
    frames: GivenFrames = field(kw_only=True)
    picture: torch.Tensor | None = None
    encoded: torch.Tensor | None = None

    @property
    def stride(self) -> int:
        """That of the model's VAE."""
        return self.inputs.stride

    def prepare(self, plan: Plan) -> None:
        """Encode the frames, for the transformer's channels and for its cross-attention."""
        if self.inputs.sees and self.picture is None:
            self.picture = self._look(plan.phase("encode_image"))
        if self.colours is None:
            self.encoded, self.colours = self._condition(plan.phase("condition"))

    def latents_shape(self) -> tuple[int, ...]:
        """Return that of the video's latents."""
        request, stride = self.request, self.inputs.stride
        frames = latent_frames(request.num_frames)
        return (1, self.inputs.channels, frames, request.height // stride, request.width // stride)

    def given(self, device: str, dtype: torch.dtype) -> dict[str, Any]:
        """Return what is read of the frames."""
        encoded = None if self.encoded is None else self.encoded.to(device)
        picture = None if self.picture is None else self.picture.to(device, dtype)
        if self.inputs.replaces:
            return {"model_input": InLatents(encoded)}
        return {"picture": picture, "model_input": None if encoded is None else BesideLatents(encoded)}

    def tensors(self) -> list[torch.Tensor]:
        """Return the encoded frames."""
        return [one for one in (self.encoded, self.picture) if one is not None]

    def key(self) -> dict[str, Any]:
        """Return that these are the latents of a model without VACE."""
        return {"frames": [self.frames.first is not None, self.frames.last is not None]}

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents with the first frame in them, where the model reads it so."""
        return InLatents(self.encoded).result(latents) if self.inputs.replaces else latents

    def _look(self, choice: PhasePlan) -> torch.Tensor:
        """Return what the image encoder makes of the frames."""
        folder = self.model.found.place("image_processor")[0]
        with self.meter.phase(choice):
            encoder: CLIPVisionModel = self.model.parts.load("image_encoder", choice)
            seen = look(
                encoder,
                folder if folder.is_dir() else None,
                self.frames.pictures,
                choice,
                device=self.meter.device,
                policy=self.host,
                reporter=self.reporter,
            )
        finite_check(choice)(seen, "in what the image encoder makes of the frames")
        return seen

    def _condition(self, choice: PhasePlan) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the encoded frames, where there are any, and the preview's colours; from disk, if seen before."""
        request = self.request
        store = TensorCache(self.host.cache_folder() / "frames", MAX_ENCODED)
        key = {
            "vae": self.model.parts.identity("vae"),
            "as": self.way(choice),
            "num_frames": 0 if self.inputs.replaces else request.num_frames,
            "frames": [self.frames.first is not None, self.frames.last is not None],
            "tensors": digest(self.frames.pictures),
        }
        stored = store.get(key)
        if stored is None:
            stored = self._encode_frames(choice)
            store.put(key, stored)
        return stored.get("latents"), stored["colours"]

    def _encode_frames(self, choice: PhasePlan) -> dict[str, torch.Tensor]:
        frames, inputs = self.frames, self.inputs

        def make(encode: Encode) -> torch.Tensor | None:
            if not frames.pictures:
                return None
            if inputs.replaces:
                return encode_first(encode, frames)
            return encode_beside(encode, frames, self.request.num_frames, inputs.stride)

        latents, colours = self.encode_by_vae(choice, "Encoding the frames", "the given frames", make)
        return {"colours": colours} | ({} if latents is None else {"latents": latents})
