"""Frame inputs: which frames of its video a Wan model can be given, and how it reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PiyingError
from ..files.folder import CONFIG, CONFIG_BYTES, INDEX
from ..files.json_file import read_json_or_empty
from ..wan.latents import CHANNELS, STRIDE, TI2V_CHANNELS, TI2V_STRIDE

if TYPE_CHECKING:
    from ..catalog.installed_model import InstalledModel
    from ..files.safetensors_file import TensorEntry

Given = Literal["no", "may", "must"]


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
    channels: int = CHANNELS
    stride: int = STRIDE

    @property
    def fps(self) -> float:
        """How many frames a second it was trained on (sample_fps of wan/configs)."""
        return 24.0 if self.stride == TI2V_STRIDE else 16.0

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
TEXT_OR_FIRST = FrameInputs("may", replaces=True, channels=TI2V_CHANNELS, stride=TI2V_STRIDE)
FIRST_OR_LAST = FrameInputs("must", "may")
FIRST = FrameInputs("must", sees=True)
FIRST_AND_LAST = FrameInputs("must", "must", sees=True)


@dataclass(frozen=True)
class TransformerShape:
    """What a transformer's configuration, or where there is none its header, tells.

    Attributes:
        inputs, channels: those it reads, and those it makes.
        width: of its layers.
        sees: whether it reads what an image encoder makes of pictures.
        sees_two: whether it was made for two of them.
    """

    inputs: int = CHANNELS
    channels: int = CHANNELS
    width: int = 5120
    sees: bool = False
    sees_two: bool = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> TransformerShape:
        """Return that of a configuration of WanTransformer3DModel.

        Raises:
            ValueError, TypeError: its values are none.
        """
        inputs = int(config.get("in_channels", cls.inputs))
        heads, each = (int(config.get(name, value)) for name, value in (HEADS, HEAD_DIM))
        return cls(
            inputs,
            int(config.get("out_channels", cls.channels) or inputs),
            heads * each,
            config.get("image_dim") is not None,
            config.get("pos_embed_seq_len") is not None,
        )

    @classmethod
    def of_entries(cls, entries: Mapping[str, TensorEntry]) -> TransformerShape:
        """Return that of a file's header, whatever its names begin with."""
        first = _ending(entries, ("patch_embedding.weight",))
        last = _ending(entries, ("head.head.weight", "proj_out.weight"))
        if first is None or last is None or len(first.shape) < 2:
            return cls()
        return cls(
            first.shape[1],
            last.shape[0] // PATCH,
            first.shape[0],
            _ending(entries, ("blocks.0.cross_attn.k_img.weight", "blocks.0.attn2.add_k_proj.weight")) is not None,
            _ending(entries, ("img_emb.emb_pos", "image_embedder.pos_embed")) is not None,
        )


HEADS, HEAD_DIM = ("num_attention_heads", 40), ("attention_head_dim", 128)
PATCH = 4  # rows of the last layer for a channel: 2×2 latent pixels


def _ending(entries: Mapping[str, TensorEntry], ends: tuple[str, ...]) -> TensorEntry | None:
    """Return the tensor of that name outside of blocks, or of that name in full inside of them."""
    for name, entry in entries.items():
        whole = next((end for end in ends if name == end or name.endswith(f".{end}")), None)
        if whole is not None and (whole.startswith("blocks.") or "blocks." not in name):
            return entry
    return None


def transformer_shape(model: InstalledModel) -> TransformerShape:
    """Return what the transformer of an installed model, or its first expert, tells.

    Raises:
        PiyingError: it is damaged.
    """
    from ..files.open import read_header

    (place, *_) = model.place("transformer")
    if place.is_dir() and (place / CONFIG).is_file():
        config = read_json_or_empty(place / CONFIG, CONFIG_BYTES)
        if config.get("_class_name") == "WanTransformer3DModel":
            try:
                return TransformerShape.of_config(config)
            except (TypeError, ValueError) as error:
                raise PiyingError(f"{place / CONFIG}: its values make no model ({error}). Fetch it again.") from error
    return TransformerShape.of_entries(read_header(place).entries)


def frame_inputs(model: InstalledModel) -> FrameInputs:
    """Return what an installed model reads.

    Raises:
        PiyingError: its transformer is damaged, or its folder has settings that make none.
    """
    shape = transformer_shape(model)
    index = read_json_or_empty(model.path / INDEX, CONFIG_BYTES) if model.path.is_dir() else {}
    own_times = index.get("expand_timesteps", shape.channels == TI2V_CHANNELS)
    if not isinstance(own_times, bool):
        raise PiyingError(f"{model.path / INDEX}: expand_timesteps is {own_times!r}. It is true or false.")
    vae = read_json_or_empty(model.place("vae")[0] / CONFIG, CONFIG_BYTES)
    # Single files say nothing of it but the channels.
    stride = vae.get("scale_factor_spatial", TI2V_STRIDE if shape.channels == TI2V_CHANNELS else STRIDE)
    plain = FrameInputs(channels=shape.channels, stride=stride if stride in (STRIDE, TI2V_STRIDE) else STRIDE)
    if shape.inputs == shape.channels:
        return replace(plain, first="may", replaces=True) if own_times else plain
    if not shape.sees:
        return replace(plain, first="must", last="may")
    return replace(plain, first="must", last="must" if shape.sees_two else "no", sees=True)


def check_frames(
    inputs: FrameInputs,
    model: str,
    *,
    has_first: bool,
    has_last: bool,
    num_frames: int | None = None,
    loop: bool = False,
) -> None:
    """Accept the frames that a video is given.

    Args:
        inputs: what the model reads.
        model: its name, for messages.
        has_first, has_last: whether there is a first and a last frame.
        num_frames: of the video, where it is known.
        loop: whether it leads from its end to its beginning.

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
    if has_first and num_frames == 1 and inputs.replaces:
        raise PiyingError(
            "num_frames is 1, and first_frame is that frame already. Choose more frames, or unwire first_frame."
        )
    if loop and (has_first or has_last):
        name = "first_frame" if has_first else "last_frame"
        raise PiyingError(
            f"loop is on, and {name} is wired: a loop begins and ends nowhere. Switch loop off; a model that reads "
            "both frames goes from one picture back to it."
        )


def default_boundary(inputs: FrameInputs) -> float:
    """Return the boundary published for Wan2.2 (wan/configs/wan_t2v_A14B.py, wan_i2v_A14B.py)."""
    return 0.875 if inputs.first == "no" else 0.9
