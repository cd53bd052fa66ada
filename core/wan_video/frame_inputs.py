"""Frame inputs: which frames of its video a Wan model can be given, and how it reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PiyingError
from ..files.folder import CONFIG_BYTES, INDEX
from ..files.json_file import read_json_or_empty

if TYPE_CHECKING:
    from ..catalog.installed_model import InstalledModel

Given = Literal["no", "may", "must"]
TI2V_CHANNELS = 48  # of the latents of Wan2.2-TI2V, of which single files say nothing else


@dataclass(frozen=True)
class FrameInputs:
    """What a model reads beside its prompt.

    Attributes:
        first, last: whether it can be given that frame of the video, or has to be.
        replaces: whether the frame stands in the latents, with a timestep of 0, in place of channels beside them.
        sees: whether it reads what an image encoder makes of the frames too.
        channels: of the latents.
        stride: pixels of a side for a latent pixel.
    """

    first: Given = "no"
    last: Given = "no"
    replaces: bool = False
    sees: bool = False
    channels: int = 16
    stride: int = 8

    @property
    def fps(self) -> float:
        """How many frames a second it was trained on (sample_fps of wan/configs)."""
        return 24.0 if self.stride == 16 else 16.0

    @property
    def words(self) -> str:
        """Return what it makes videos from, for use in a sentence."""
        if self.first == "no":
            return "text alone"
        if self.first == "may":
            return "text, and a first frame where one is given"
        return {"no": "a first frame", "may": "a first frame, and a last one where one is given"}.get(
            self.last, "a first and a last frame"
        )


TEXT = FrameInputs()
TEXT_OR_FIRST = FrameInputs("may", replaces=True, channels=TI2V_CHANNELS, stride=16)
FIRST_OR_LAST = FrameInputs("must", "may")
FIRST = FrameInputs("must", sees=True)
FIRST_AND_LAST = FrameInputs("must", "must", sees=True)


def of_config(config: Mapping[str, Any], *, own_times: bool, stride: int) -> FrameInputs:
    """Return what a transformer reads.

    Args:
        config: of WanTransformer3DModel.
        own_times: whether each token has a timestep of its own.
        stride: of the VAE.
    """
    inputs = int(config.get("in_channels", 16))
    channels = int(config.get("out_channels") or inputs)
    if inputs == channels:
        return FrameInputs("may" if own_times else "no", replaces=own_times, channels=channels, stride=stride)
    if config.get("image_dim") is None:
        return FrameInputs("must", "may", channels=channels, stride=stride)
    last: Given = "no" if config.get("pos_embed_seq_len") is None else "must"
    return FrameInputs("must", last, sees=True, channels=channels, stride=stride)


def frame_inputs(model: InstalledModel) -> FrameInputs:
    """Return what an installed model reads.

    Raises:
        PiyingError: its transformer is damaged, or its folder has settings that make none.
    """
    config = component_config(model, "transformer")
    index = read_json_or_empty(model.path / INDEX, CONFIG_BYTES) if model.path.is_dir() else {}
    is_ti2v = int(config.get("out_channels") or 16) == TI2V_CHANNELS
    own_times = index.get("expand_timesteps", is_ti2v)
    if not isinstance(own_times, bool):
        raise PiyingError(f"{model.path / INDEX}: expand_timesteps is {own_times!r}. It is true or false.")
    stride = int(component_config(model, "vae").get("scale_factor_spatial", 8))
    return of_config(config, own_times=own_times, stride=stride)


def component_config(model: InstalledModel, part: str) -> Mapping[str, Any]:
    """Return the configuration of a component, from its headers where no file has it.

    Raises:
        PiyingError: it is damaged.
    """
    from ..checkpoints.components import find_component

    return find_component(part, model.place(part)).config


def transformer_width(model: InstalledModel) -> int:
    """Return how wide the transformer of an installed model is."""
    config = component_config(model, "transformer")
    return int(config.get("num_attention_heads", 40)) * int(config.get("attention_head_dim", 128))


def check_frames(
    inputs: FrameInputs, model: str, *, has_first: bool, has_last: bool, num_frames: int | None = None
) -> None:
    """Accept the frames that a video is given.

    Args:
        inputs: what the model reads.
        model: its name, for messages.
        has_first, has_last: whether there is a first and a last frame.
        num_frames: of the video, where it is known.

    Raises:
        PiyingError: the model cannot read one of them, or lacks one.
    """
    words = inputs.words
    if has_first and inputs.first == "no":
        raise PiyingError(
            f"first_frame is wired, and {model} makes videos from {words}. Unwire it, or choose an image-to-video "
            "model (I2V) or TI2V-5B."
        )
    if has_last and inputs.last == "no":
        raise PiyingError(
            f"last_frame is wired, and {model} makes videos from {words}. Unwire it, or choose a model for both: "
            "FLF2V, or Wan2.2 I2V-A14B."
        )
    if not has_first and inputs.first == "must":
        raise PiyingError(
            f"first_frame is not wired, and {model} makes videos from {words}. Wire a picture to it, or choose a "
            "text-to-video model (T2V)."
        )
    if not has_last and inputs.last == "must":
        raise PiyingError(
            f"last_frame is not wired, and {model} makes videos from {words}. Wire a picture to it, or choose an "
            "image-to-video model (I2V)."
        )
    if has_last and num_frames == 1:
        raise PiyingError(
            "num_frames is 1, and a first and a last frame are two. Choose more frames, or unwire last_frame."
        )


def default_boundary(inputs: FrameInputs) -> float:
    """Return the boundary published for Wan2.2 (wan/configs/wan_t2v_A14B.py, wan_i2v_A14B.py)."""
    return 0.875 if inputs.first == "no" else 0.9
