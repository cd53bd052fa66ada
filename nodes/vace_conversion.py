"""Conversion: VACE workflows of ComfyUI's core nodes and of WanVideoWrapper, said in Piying's nodes.

A graph is {id: node} in ComfyUI's API form. What makes a video is found by walking back from what shows or saves it:
decoder, sampler, conditioning, models. Nodes that are known here are taken over as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import PiyingError, clipped
from ..core.lora.catalog import NONE
from ..core.wan.request import MAX_FRAMES, SAMPLERS
from ..core.wan.schedule import CAUSVID, TRAINING_STEPS

Link = list[Any]  # [id of a node, output]

# Schedulers of WanVideoSampler as samplers, and those of Euler's with a schedule of their own.
WRAPPER_SAMPLERS = {
    "unipc": "uni_pc",
    "euler": "euler",
    "dpm++": "dpmpp_2m",
    "dpm++_sde": "dpmpp_2m_sde",
    "lcm": "lcm",
    "res_multistep": "res_multistep",
}
FLOW_MATCH = {"flowmatch_causvid": "causvid", "flowmatch_distill": "distill"}

# Classes of others with their inputs in order and their outputs: without them the widgets of a file have no names.
# `!` marks texts of which the browser chooses one option of each {a|b}.
SIGNATURES = """
UNETLoader unet_name:COMBO weight_dtype:COMBO > MODEL
UnetLoaderGGUF unet_name:COMBO > MODEL
CLIPLoader clip_name:COMBO type:COMBO device:COMBO > CLIP
CLIPLoaderGGUF clip_name:COMBO type:COMBO > CLIP
VAELoader vae_name:COMBO > VAE
LoraLoader model:MODEL clip:CLIP lora_name:COMBO strength_model:FLOAT strength_clip:FLOAT > MODEL CLIP
LoraLoaderModelOnly model:MODEL lora_name:COMBO strength_model:FLOAT > MODEL
ModelSamplingSD3 model:MODEL shift:FLOAT > MODEL
CLIPTextEncode text:STRING! clip:CLIP > CONDITIONING
ConditioningZeroOut conditioning:CONDITIONING > CONDITIONING
WanVaceToVideo positive:CONDITIONING negative:CONDITIONING vae:VAE width:INT height:INT length:INT batch_size:INT \
strength:FLOAT control_video:IMAGE control_masks:MASK reference_image:IMAGE > CONDITIONING CONDITIONING LATENT INT
EmptyHunyuanLatentVideo width:INT height:INT length:INT batch_size:INT > LATENT
KSampler model:MODEL seed:INT steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO positive:CONDITIONING \
negative:CONDITIONING latent_image:LATENT denoise:FLOAT > LATENT
TrimVideoLatent samples:LATENT trim_amount:INT > LATENT
VAEDecode samples:LATENT vae:VAE > IMAGE
VAEDecodeTiled samples:LATENT vae:VAE tile_size:INT overlap:INT temporal_size:INT temporal_overlap:INT > IMAGE
RebatchImages images:IMAGE batch_size:INT > IMAGE
Canny image:IMAGE low_threshold:FLOAT high_threshold:FLOAT > IMAGE
ImageResizeKJ image:IMAGE width:INT height:INT upscale_method:COMBO keep_proportion:BOOLEAN divisible_by:INT \
get_image_size:IMAGE crop:COMBO > IMAGE INT INT
ImageResizeKJv2 image:IMAGE width:INT height:INT upscale_method:COMBO keep_proportion:COMBO pad_color:STRING \
crop_position:COMBO divisible_by:INT mask:MASK device:COMBO > IMAGE INT INT MASK
VHS_LoadVideo video:COMBO force_rate:FLOAT custom_width:INT custom_height:INT frame_load_cap:INT \
skip_first_frames:INT select_every_nth:INT > IMAGE INT AUDIO VHS_VIDEOINFO
VHS_LoadVideoPath video:STRING force_rate:FLOAT custom_width:INT custom_height:INT frame_load_cap:INT \
skip_first_frames:INT select_every_nth:INT > IMAGE INT AUDIO VHS_VIDEOINFO
VHS_VideoCombine images:IMAGE frame_rate:FLOAT loop_count:INT filename_prefix:STRING format:COMBO pingpong:BOOLEAN \
save_output:BOOLEAN audio:AUDIO > VHS_FILENAMES
WanVideoModelLoader model:COMBO base_precision:COMBO quantization:COMBO load_device:COMBO attention_mode:COMBO > \
WANVIDEOMODEL
WanVideoVACEModelSelect vace_model:COMBO > VACEPATH
WanVideoExtraModelSelect extra_model:COMBO > VACEPATH
WanVideoLoraSelect lora:COMBO strength:FLOAT prev_lora:WANVIDLORA > WANVIDLORA
WanVideoLoraSelectMulti lora_0:COMBO strength_0:FLOAT lora_1:COMBO strength_1:FLOAT lora_2:COMBO strength_2:FLOAT \
lora_3:COMBO strength_3:FLOAT lora_4:COMBO strength_4:FLOAT > WANVIDLORA
WanVideoTextEncode positive_prompt:STRING negative_prompt:STRING t5:WANTEXTENCODER > WANVIDEOTEXTEMBEDS
WanVideoTextEncodeCached model_name:COMBO precision:COMBO positive_prompt:STRING negative_prompt:STRING > \
WANVIDEOTEXTEMBEDS
WanVideoTextEmbedBridge positive:CONDITIONING negative:CONDITIONING > WANVIDEOTEXTEMBEDS
WanVideoEmptyEmbeds width:INT height:INT num_frames:INT > WANVIDIMAGE_EMBEDS
WanVideoVACEEncode vae:WANVAE width:INT height:INT num_frames:INT strength:FLOAT vace_start_percent:FLOAT \
vace_end_percent:FLOAT input_frames:IMAGE ref_images:IMAGE input_masks:MASK prev_vace_embeds:WANVIDIMAGE_EMBEDS > \
WANVIDIMAGE_EMBEDS
WanVideoVACEStartToEndFrame num_frames:INT empty_frame_level:FLOAT start_image:IMAGE end_image:IMAGE \
control_images:IMAGE inpaint_mask:MASK start_index:INT end_index:INT > IMAGE MASK
WanVideoSampler model:WANVIDEOMODEL image_embeds:WANVIDIMAGE_EMBEDS steps:INT cfg:FLOAT shift:FLOAT seed:INT \
force_offload:BOOLEAN scheduler:COMBO riflex_freq_index:INT text_embeds:WANVIDEOTEXTEMBEDS denoise_strength:FLOAT > \
LATENT
WanVideoDecode vae:WANVAE samples:LATENT > IMAGE
"""
DECODERS = ("VAEDecode", "VAEDecodeTiled", "WanVideoDecode")
VIDEO_LOADERS = ("VHS_LoadVideo", "VHS_LoadVideoPath")
CONTROLS = {
    "Canny": "PiyingControlEdges",
    "CannyEdgePreprocessor": "PiyingControlEdges",
    "ScribblePreprocessor": "PiyingControlScribble",
    "DepthAnythingPreprocessor": "PiyingControlDepth",
    "DepthAnythingV2Preprocessor": "PiyingControlDepth",
    "DWPreprocessor": "PiyingControlPose",
    "OpenposePreprocessor": "PiyingControlPose",
}
# Chosen or decided by nodes of ours, so that nothing is lost without them.
IMPLIED = {
    *("CLIPLoader", "CLIPLoaderGGUF", "VAELoader", "WanVideoVAELoader", "LoadWanVideoT5TextEncoder"),
    *("WanVideoBlockSwap", "WanVideoVRAMManagement", "WanVideoVACEModelSelect", "WanVideoExtraModelSelect"),
}
FITTED: dict[str, Any] = {"fit": "crop", "length": "continue", "fps": 16.0}
SIZED = ("PiyingVACERepaint", "PiyingVACEInpaint", "PiyingVACEExtend")  # tasks that offer a size and a length
CORE_SHIFT = 8.0  # ComfyUI's shift for Wan where no node sets one
SIDE = 16


def foreign_definitions() -> dict[str, dict[str, Any]]:
    """Return the definitions of `SIGNATURES` in the shape of ComfyUI's /object_info."""
    found: dict[str, dict[str, Any]] = {}
    for line in SIGNATURES.strip().splitlines():
        declared, _, outputs = line.partition(" > ")
        name, *inputs = declared.split()
        fields = [text.partition(":")[::2] for text in inputs]
        required = {key: (kind.rstrip("!"), {"dynamicPrompts": kind.endswith("!")}) for key, kind in fields}
        found[name] = {"input": {"required": required}, "output": outputs.split(), "output_node": False}
    return found


def convert(graph: dict[str, Any], info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a workflow of the nodes that are known here, and what it could not carry over, a sentence each.

    Args:
        graph: a workflow in the API form.
        info: definitions of the nodes that are known here.

    Raises:
        PiyingError: no video of it can be made with VACE Sample; the text says why.
    """
    try:
        return _Conversion(graph, info).run()
    except RecursionError as error:
        raise PiyingError(
            "The workflow cannot be converted: its nodes go in a circle, or in too long a row."
        ) from error


class _NotConvertedError(Exception):
    """A node has no counterpart here, so what depends on it cannot be made; the text is for the person."""


class _Conversion:
    def __init__(self, graph: dict[str, Any], info: dict[str, Any]) -> None:
        nodes = {str(key): node for key, node in graph.items() if isinstance(node, dict)}
        self._graph = {key: node for key, node in nodes.items() if isinstance(node.get("inputs", {}), dict)}
        self._info = info
        self._made: dict[str, Any] = {}
        self._done: dict[Any, Any] = {}  # results by what they were asked for, so that shared nodes are made once
        self._used: set[str] = set()
        self._notes: list[str] = []
        self._last = max([int(key) for key in nodes if key.isdecimal() and len(key) < 9], default=0)
        self._handlers: dict[str, Callable[[str, int], Link]] = {
            **dict.fromkeys(DECODERS, self._frames),
            **dict.fromkeys(VIDEO_LOADERS, self._loaded_video),
            **dict.fromkeys(CONTROLS, self._control),
            **dict.fromkeys(("ImageResizeKJ", "ImageResizeKJv2"), self._resized),
            "RebatchImages": self._rebatched,
        }

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Return the new graph and the notes."""
        failed: dict[str, str] = {}
        for key in self._graph:
            definition = self._info.get(self._class(key))
            if definition is not None and definition.get("output_node"):
                take_over = self._copy
            elif self._class(key) == "VHS_VideoCombine":
                take_over = self._saved
            else:
                continue
            before = dict(self._made), dict(self._done)
            try:
                take_over(key)
            except _NotConvertedError as error:
                # Without what was begun for it: half a chain would be refused.
                self._made, self._done = before
                failed[key] = f"{self._name(key)} is left out: {error}"
        if not any(node["class_type"] == "PiyingVACESample" for node in self._made.values()):
            reasons = failed.values() or ["No node of it shows or saves what a VACE sampler makes."]
            raise PiyingError(" ".join(["The workflow cannot be converted.", *reasons]))
        for key, node in self._made.items():
            self._fit_values(key, node)
        left = [key for key in self._graph if key not in self._used and self._class(key) not in IMPLIED]
        notes = [f"{self._name(key)}, {self._class(key)}, is not carried over." for key in left if key not in failed]
        drawn = "The same seed draws other noise here, so the video will be another one of its kind."
        return self._made, [*dict.fromkeys([*failed.values(), *self._notes, *notes]), drawn]

    def _fit_values(self, key: str, node: dict[str, Any]) -> None:
        """Replace what an input here does not take, such as a codec of ComfyUI's, and note it.

        Files are left as they are: they may be put where they are looked for.
        """
        definition = self._info[node["class_type"]]
        specs = {
            name: spec
            for group in ("required", "optional")
            for name, spec in definition["input"].get(group, {}).items()
        }
        for name, value in node["inputs"].items():
            kind, options = (*specs.get(name, ("*",)), {})[:2]
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            taken = value
            if (
                choices
                and not isinstance(value, list)
                and value not in choices
                and not any("upload" in each for each in options)
            ):
                taken = options.get("default", choices[0])
            elif kind in ("INT", "FLOAT") and isinstance(value, int | float) and not isinstance(value, bool):
                taken = min(max(value, options.get("min", value)), options.get("max", value))
            if taken != value:
                node["inputs"][name] = taken
                title = node.get("_meta", {}).get("title") or definition.get("display_name") or node["class_type"]
                self._notes.append(
                    f"{title} (node {key}): {name} is {value!r}, which is not taken here; it becomes {taken!r}."
                )

    # Reading

    def _class(self, key: str) -> str:
        return str(self._graph[key].get("class_type"))

    def _name(self, key: str) -> str:
        meta = self._graph[key].get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        return f"{title or self._class(key)} (node {key})"

    def _inputs(self, key: str) -> dict[str, Any]:
        self._used.add(key)
        found: dict[str, Any] = self._graph[key].get("inputs", {})
        return found

    def _linked(self, value: Any) -> tuple[str, int] | None:
        """Return node and output that an input is linked to; None for a value, or nothing."""
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self._graph and isinstance(value[1], int):
            return str(value[0]), value[1]
        return None

    def _before(self, key: str, name: str, passed: set[str]) -> tuple[str, int] | None:
        """Return what an input of a node in a chain is linked to; `passed` gets the nodes of the chain."""
        if key in passed:
            raise _NotConvertedError(f"{self._name(key)} depends on itself. Remove one link.")
        passed.add(key)
        return self._linked(self._inputs(key).get(name))

    def _note(self, key: str, text: str) -> None:
        self._notes.append(f"{self._name(key)}: {text}")

    # Taking over

    def _value(self, value: Any) -> Any:
        """Return a value as it is, or the link of the new graph that gives what a link gave."""
        found = self._linked(value)
        if found is None:
            if isinstance(value, list):
                raise _NotConvertedError("an input is linked to a node that is not there.")
            # The browser's sliders leave 8.000000000000002.
            return round(value, 6) if isinstance(value, float) else value
        key, slot = found
        handler = self._handlers.get(self._class(key))
        if handler is not None:
            if (key, slot) not in self._done:
                self._done[key, slot] = handler(key, slot)
            return list(self._done[key, slot])
        if self._class(key) not in self._info:
            raise _NotConvertedError(f"{self._name(key)}, {self._class(key)}, has no counterpart here.")
        self._copy(key)
        return [key, slot]

    def _copy(self, key: str) -> None:
        """Take a node that is known here over, with all it depends on."""
        if key in self._made:
            return
        declared = self._info[self._class(key)]["input"]
        inputs: dict[str, Any] = {}
        for name, value in self._inputs(key).items():
            try:
                inputs[name] = self._value(value)
            except _NotConvertedError as error:
                if name not in declared.get("optional", {}):
                    raise
                self._note(key, f"{name} is left out: {error}")
        self._made[key] = {**self._graph[key], "inputs": inputs}

    def _add(self, class_type: str, key: str = "", **inputs: Any) -> str:
        """Add a node of ours, under the id of the node whose work it does, or a new one; return the id."""
        while not key or key in self._made:
            self._last += 1
            key = str(self._last)
        self._made[key] = {"class_type": class_type, "inputs": {k: v for k, v in inputs.items() if v is not None}}
        return key

    def _choice(self, class_type: str, name: str, wanted: Any, otherwise: str) -> tuple[str, bool]:
        """Return the choice of one of our widgets that a file's name stands for, and whether there is one."""
        choices = self._info[class_type]["input"]["required"][name][0]
        stem = str(wanted).replace("\\", "/").rpartition("/")[2].rpartition(".")[0].lower()
        fits = [each for each in choices if str(each) == wanted or (stem and stem in str(each).lower())]
        return (fits[0], True) if len(fits) == 1 else (otherwise, False)

    # Pictures

    def _rebatched(self, key: str, slot: int) -> Link:
        del slot
        self._note(key, "batches of frames are not split here; the frames go on together.")
        frames: Link = self._value(self._inputs(key).get("images"))
        return frames

    def _control(self, key: str, slot: int) -> Link:
        if slot:
            raise _NotConvertedError(f"{self._name(key)} gives more than frames, which has no counterpart here.")
        made = CONTROLS[self._class(key)]
        self._note(key, f"{self._info[made]['display_name']} takes its place, with settings of its own.")
        return [self._add(made, key, frames=self._value(self._inputs(key).get("image"))), 0]

    def _resized(self, key: str, slot: int) -> Link:
        inputs = self._inputs(key)
        if slot > 2:
            raise _NotConvertedError(f"{self._name(key)} resizes a mask, which has no counterpart here.")
        if ("resized", key) not in self._done:
            crop = inputs.get("keep_proportion") in ("crop", "pad", "pad_edge", True)
            if inputs.get("keep_proportion") not in ("stretch", "crop", False):
                self._note(key, "Upscale Image stretches or crops; it neither pads nor keeps proportions.")
            methods = self._info["ImageScale"]["input"]["required"]["upscale_method"][0]
            method = inputs.get("upscale_method")
            self._done["resized", key] = self._add(
                "ImageScale",
                key,
                image=self._value(inputs.get("image")),
                upscale_method=method if method in methods else "lanczos",
                width=self._value(inputs.get("width", 0)),
                height=self._value(inputs.get("height", 0)),
                crop="center" if crop else "disabled",
            )
        scaled: Link = [self._done["resized", key], 0]
        return scaled if slot == 0 else self._measured(scaled, slot - 1)

    def _measured(self, frames: Link, slot: int) -> Link:
        """Return width, height or number of frames."""
        wanted = ("measured", *frames)
        if wanted not in self._done:
            self._done[wanted] = self._add("GetImageSize", image=frames)
        return [self._done[wanted], slot]

    def _is_measured(self, value: Any) -> bool:
        """Return whether a link of the new graph gives what frames were measured to have."""
        return isinstance(value, list) and self._made[value[0]]["class_type"] == "GetImageSize"

    def _loaded_video(self, key: str, slot: int) -> Link:
        inputs = self._inputs(key)
        if slot > 2:
            raise _NotConvertedError(f"{self._name(key)} tells about a video, which has no counterpart here.")
        if ("video", key) not in self._done:
            file = str(inputs.get("video", "")).replace("\\", "/")
            if self._class(key) == "VHS_LoadVideoPath":
                self._note(key, f"Load Video reads from the input folder: copy {file!r} there.")
                file = file.rpartition("/")[2]
            video = self._add("LoadVideo", file=file)
            components = self._add("GetVideoComponents", key, video=[video, 0])
            frames: Link = [components, 0]
            cap, skipped = inputs.get("frame_load_cap") or 0, inputs.get("skip_first_frames") or 0
            if cap or skipped:
                cap, skipped = self._value(cap or 4096), self._value(skipped)
                frames = [self._add("ImageFromBatch", image=frames, batch_index=skipped, length=cap), 0]
            width, height = inputs.get("custom_width") or 0, inputs.get("custom_height") or 0
            if width or height:
                sides = {"width": self._value(width), "height": self._value(height)}
                scaled = self._add("ImageScale", image=frames, upscale_method="lanczos", crop="center", **sides)
                frames = [scaled, 0]
            for name, neutral in (("force_rate", 0), ("select_every_nth", 1)):
                if inputs.get(name, neutral) != neutral:
                    self._note(key, f"{name} is not carried over; Frame Rate can do it.")
            self._done["video", key] = frames, components
        frames, components = self._done["video", key]
        if slot == 1:
            return self._measured(frames, 2)
        return list(frames) if slot == 0 else [components, 1]

    def _saved(self, key: str) -> None:
        """Make a video file of frames, as VideoHelperSuite's saver does."""
        inputs = self._inputs(key)
        frames = self._value(inputs.get("images"))
        sound = None if inputs.get("audio") is None else self._value(inputs["audio"])
        made = self._add("CreateVideo", images=frames, fps=self._value(inputs.get("frame_rate", 16)), audio=sound)
        prefix = inputs.get("filename_prefix", "video/ComfyUI")
        self._add("SaveVideo", key, video=[made, 0], filename_prefix=prefix, format="auto", codec="auto")
        if "h264" not in str(inputs.get("format", "h264")):
            self._note(key, f"the format {inputs['format']} becomes an MP4 with H.264.")
        for name in ("pingpong", "loop_count"):
            if inputs.get(name):
                self._note(key, f"{name} is not carried over.")

    # Sampling

    def _frames(self, key: str, slot: int) -> Link:
        """Return the frames that a decoder gives: those of our sampler."""
        del slot
        found = self._linked(self._inputs(key).get("samples"))
        passed: set[str] = set()
        while found is not None and self._class(found[0]) == "TrimVideoLatent":
            trim = found[0]
            amount = self._inputs(trim).get("trim_amount", 0)
            if amount and self._linked(amount) is None:
                self._note(trim, f"trim_amount {amount} is not carried over: a reference adds no frames here.")
            found = self._before(trim, "samples", passed)
        makers = {"KSampler": self._core_sampler, "WanVideoSampler": self._wrapper_sampler}
        if found is None or self._class(found[0]) not in makers:
            what = "nothing" if found is None else f"{self._name(found[0])}, {self._class(found[0])}"
            raise _NotConvertedError(f"{self._name(key)} decodes what {what} gives, and that is not VACE's sampling.")
        sampler = found[0]
        if ("sampler", sampler) not in self._done:
            self._done["sampler", sampler] = [makers[self._class(sampler)](sampler), 0]
        return list(self._done["sampler", sampler])

    def _core_sampler(self, key: str) -> str:
        inputs = self._inputs(key)
        latent, positive, negative = (
            self._linked(inputs.get(name)) for name in ("latent_image", "positive", "negative")
        )
        if latent is None or self._class(latent[0]) not in ("WanVaceToVideo", "EmptyHunyuanLatentVideo"):
            raise _NotConvertedError(f"{self._name(key)} begins with a latent that VACE Sample cannot begin with.")
        size = self._inputs(latent[0])
        frames = self._frame_count(latent[0], "length", size.get("control_video") is not None)
        masked = size.get("control_video") is not None and size.get("control_masks") is not None
        sides = self._side(latent[0], "width", masked), self._side(latent[0], "height", masked)
        task = None
        if self._class(latent[0]) == "WanVaceToVideo":
            if (positive, negative) != ((latent[0], 0), (latent[0], 1)):
                raise _NotConvertedError(f"{self._name(key)} takes its prompts past {self._name(latent[0])}.")
            positive, negative = (self._linked(size.get(name)) for name in ("positive", "negative"))
            task = self._core_task(latent[0], (*sides, frames))
        if size.get("batch_size", 1) != 1:
            self._note(latent[0], "batch_size is not carried over: one video is made.")
        if inputs.get("denoise", 1) != 1:
            self._note(key, "denoise is not carried over: VACE Sample always makes a video from noise.")
        model, shift = self._core_model(inputs.get("model"))
        return self._sampler(
            key,
            model=[model, 0],
            prompt=self._prompt(positive),
            negative_prompt=self._prompt(negative),
            size=(*sides, frames),
            settings={
                **{name: inputs.get(name) for name in ("steps", "cfg", "seed")},
                "shift": shift,
                **self._core_sampling(key, inputs.get("sampler_name"), inputs.get("scheduler")),
            },
            task=task,
        )

    def _core_sampling(self, key: str, name: Any, scheduler: Any) -> dict[str, str]:
        """Return the sampler of a KSampler; `simple` is the schedule that `auto` stands for."""
        spread = {"scheduler": "beta"} if scheduler == "beta" else {}
        if scheduler not in ("simple", "beta"):
            self._note(key, f"scheduler {clipped(str(scheduler))} is not carried over: simple is the nearest here.")
        # What is wired, or no word at all, is none of these.
        known = {"uni_pc_bh2": "uni_pc", "dpmpp_2m_sde_gpu": "dpmpp_2m_sde"} | {word: word for word in SAMPLERS}
        if isinstance(name, str) and name in known:
            return {"sampler": known[name], **spread}
        self._note(
            key, f"sampler {clipped(str(name))} is not carried over: VACE Sample has {', '.join(SAMPLERS[1:])}."
        )
        return spread

    def _sampler(
        self,
        key: str,
        *,
        model: Link,
        prompt: Any,
        negative_prompt: Any,
        size: tuple[Any, Any, Any],
        settings: dict[str, Any],
        task: Link | None,
    ) -> str:
        """Add VACE Sample with the nearest settings that it takes."""
        width, height, frames = size
        if task is not None and self._made[task[0]]["class_type"] in SIZED:
            # What was measured may be no size that can be made; the task offers the nearest one that can.
            width, height, frames = (
                [task[0], slot] if self._is_measured(value) else value
                for slot, value in enumerate((width, height, frames), 1)
            )
        settings = {name: self._value(value) for name, value in settings.items()}
        if isinstance(settings["cfg"], int | float) and settings["cfg"] < 1:
            self._note(key, f"cfg {settings['cfg']} becomes 1, the least there is.")
            settings["cfg"] = 1.0
        return self._add(
            "PiyingVACESample",
            key,
            model=model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_frames=frames,
            task=task,
            **settings,
        )

    def _frame_count(self, key: str, name: str, shared: bool) -> Any:
        """Return the number of frames that a node declares, or the link that gives it.

        Where more than the sampler needs it, a number is a node of its own, so that it is changed in one place.
        """
        if ("frames", key) in self._done:
            return self._done["frames", key]
        frames = self._whole_number(key, name)
        if isinstance(frames, int):
            if frames > MAX_FRAMES:
                raise _NotConvertedError(
                    f"{self._name(key)} asks for {frames} frames, VACE Sample makes up to {MAX_FRAMES}. Use VACE Long "
                    "Video."
                )
            if frames % 4 != 1:
                self._note(key, f"{frames} frames become {frames // 4 * 4 + 1}: their number is 4n+1.")
                frames = frames // 4 * 4 + 1
            frames = self._number(name, frames) if shared else frames
        self._done["frames", key] = frames
        return frames

    def _side(self, key: str, name: str, shared: bool) -> Any:
        """Return the width or height that a node declares, or the link that gives it; `shared` as for the frames."""
        if ("side", key, name) not in self._done:
            value = self._whole_number(key, name)
            if isinstance(value, int) and value % SIDE:
                rounded = max(SIDE, round(value / SIDE) * SIDE)
                self._note(key, f"{name} {value} becomes {rounded}, a multiple of {SIDE}.")
                value = rounded
            self._done["side", key, name] = self._number(name, value) if shared else value
        return self._done["side", key, name]

    def _whole_number(self, key: str, name: str) -> Any:
        """Return an input that is a whole number, or the link that gives it."""
        value = self._inputs(key).get(name)
        if self._linked(value) is None and (isinstance(value, bool) or not isinstance(value, int)):
            raise _NotConvertedError(
                f"{self._name(key)}: {name} is {clipped(repr(value), 40)}; it has to be a whole number, or linked."
            )
        return self._value(value)

    def _number(self, name: str, value: Any) -> Any:
        """Return the link of a node that holds a number, called so; what is no number stays."""
        if not isinstance(value, int):
            return value
        key = self._add("PrimitiveInt", value=value)
        self._made[key]["_meta"] = {"title": name}
        return [key, 0]

    def _prompt(self, found: tuple[str, int] | None) -> Any:
        """Return the text of a conditioning, or the link that gives it."""
        if found is None:
            raise _NotConvertedError("a prompt is missing.")
        inputs = self._inputs(found[0])
        if self._class(found[0]) == "ConditioningZeroOut":
            return ""
        if self._class(found[0]) != "CLIPTextEncode":
            raise _NotConvertedError(f"{self._name(found[0])}, {self._class(found[0])}, gives more than a prompt.")
        return self._value(inputs.get("text", ""))

    def _core_model(self, value: Any) -> tuple[str, Any]:
        """Return our loader, with the LoRAs behind it, for what a sampler takes as its model, and the shift."""
        loras: list[tuple[str, Any, Any]] = []
        shift: Any = None
        passed: set[str] = set()
        found = self._linked(value)
        while found is not None and self._class(found[0]) not in ("UNETLoader", "UnetLoaderGGUF"):
            key = found[0]
            inputs, kind = self._inputs(key), self._class(found[0])
            if kind == "ModelSamplingSD3":
                shift = inputs.get("shift") if shift is None else shift
            elif kind in ("LoraLoader", "LoraLoaderModelOnly"):
                loras.append((key, inputs.get("lora_name"), inputs.get("strength_model", 1.0)))
                if inputs.get("strength_clip", 1) not in (0, 1):
                    self._note(key, "strength_clip is not carried over: the text encoder takes no LoRA.")
            else:
                self._note(key, f"{kind} is not carried over.")
            found = self._before(key, "model", passed)
        if found is None:
            raise _NotConvertedError("the sampler's model comes from no loader that is known.")
        inputs = self._inputs(found[0])
        if "fp8" in str(inputs.get("weight_dtype")):
            self._note(found[0], "weight_dtype is not carried over: memory is auto, which takes FP8 where it has to.")
        return self._model(found[0], inputs.get("unet_name"), loras), CORE_SHIFT if shift is None else shift

    def _model(self, key: str, file: Any, loras: list[tuple[str, Any, Any]]) -> str:
        """Add our loader and one LoRA node for each LoRA, given from the sampler to the loader."""
        chain = ("model", key, *((each[0], str(each[1])) for each in loras))
        if chain in self._done:
            return str(self._done[chain])
        model, found = self._choice("PiyingLoadWanVACE", "model", file, "auto")
        if not found:
            self._note(key, f"{file!r} is not among the models here, so the model is auto.")
        made = self._add("PiyingLoadWanVACE", key, model=model, precision="auto", memory="auto")
        for node, name, strength in reversed(loras):
            lora, found = self._choice("PiyingLoRA", "lora", name, NONE)
            if not found:
                self._note(node, f"the LoRA {name!r} is not in models/loras here, so Add LoRA stands at {NONE}.")
            made = self._add("PiyingLoRA", node, model=[made, 0], lora=lora, strength=self._value(strength))
        self._done[chain] = made
        return made

    # Tasks

    def _core_task(self, key: str, size: tuple[Any, Any, Any]) -> Link | None:
        inputs = self._inputs(key)
        strength = inputs.get("strength", 1.0)
        task = self._reference(inputs.get("reference_image"), None)
        if inputs.get("control_video") is None:
            if inputs.get("control_masks") is not None:
                self._note(key, "control_masks without a control_video are not carried over.")
            if self._value(strength) != 1:
                what = "a prompt" if task is None else "a reference"
                self._note(key, f"strength {strength} is not carried over: {what} alone has none.")
            return task
        source = inputs["control_video"], inputs.get("control_masks")
        return self._edited(key, source, size=size, task=task, strength={"strength": strength})

    def _reference(self, image: Any, task: Link | None) -> Link | None:
        if image is None:
            return task
        picture = self._value(image)
        self._notes.append("A reference picture is padded with white here, not cropped to the size of the video.")
        return [self._add("PiyingVACEReference", image=picture, task=task, invert_mask=False, crop=False), 0]

    def _edited(
        self,
        key: str,
        source: tuple[Any, Any],
        *,
        size: tuple[Any, Any, Any],
        task: Link | None,
        strength: dict[str, Any],
    ) -> Link:
        """Return the task of a control video and its mask: followed where that is white, kept where it is black."""
        video, mask = source
        fitted = FITTED | ({"length": "trim"} if self._is_measured(size[2]) else {})
        frames = self._value(video)
        # Frames and mask may be of two sizes, and each of more frames than the video.
        frames = self._first(frames if mask is None else self._scaled(frames, size), size[2])
        chosen = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0} | strength
        if isinstance(chosen["strength"], int | float) and chosen["strength"] > 2:
            self._note(key, f"strength {chosen['strength']} becomes 2, the most there is.")
            chosen["strength"] = 2.0
        chosen = {name: self._value(value) for name, value in chosen.items()}
        area = None if mask is None else self._mask(mask, size)
        if area is not None:
            inside: dict[str, Any] = {"invert": False, "shape": "as drawn", "grow": 0, "keep": False, "feather": 8}
            task = [self._add("PiyingVACEInpaint", video=frames, mask=area, task=task, **inside, **fitted), 0]
            self._note(key, "what the mask leaves is kept as the VAE decodes it; `keep` of VACE: Inpaint restores it.")
        made = self._add("PiyingVACERepaint", key, control=frames, mask=area, task=task, **chosen, **fitted)
        return [made, 0]

    def _scaled(self, frames: Link, size: tuple[Any, Any, Any]) -> Link:
        """Return frames at the size of the video, scaled as the nodes of others do it."""
        width, height, _ = size
        how = {"upscale_method": "bilinear", "crop": "center"}
        return [self._add("ImageScale", "", image=frames, width=width, height=height, **how), 0]

    def _first(self, frames: Link, count: Any) -> Link:
        """Return the first frames, as many as the video gets: what is longer is cut there too."""
        if self._is_measured(count):
            return frames  # all of them
        return [self._add("ImageFromBatch", image=frames, batch_index=0, length=count), 0]

    def _mask(self, mask: Any, size: tuple[Any, Any, Any]) -> Link:
        """Return a mask of as many frames as the control video has, or of one for all of them."""
        found = self._linked(mask)
        image = self._linked(self._graph[found[0]].get("inputs", {}).get("image")) if found is not None else None
        # One mask repeated for every frame is one mask here, whatever the number of frames.
        classes = [self._class(each[0]) for each in (found, image) if each is not None]
        if found is not None and image is not None and classes == ["ImageToMask", "RepeatImageBatch"]:
            channel = self._inputs(found[0]).get("channel", "red")
            picture = self._scaled(self._value(self._inputs(image[0]).get("image")), size)
            return [self._add("ImageToMask", image=picture, channel=channel), 0]
        frames = self._scaled([self._add("MaskToImage", mask=self._value(mask)), 0], size)
        frames = self._first(frames, size[2])
        return [self._add("ImageToMask", image=frames, channel="red"), 0]

    # WanVideoWrapper

    def _wrapper_sampler(self, key: str) -> str:
        inputs = self._inputs(key)
        if self._linked(inputs.get("samples")) is not None or inputs.get("denoise_strength", 1) != 1:
            raise _NotConvertedError(f"{self._name(key)} begins with a latent; VACE Sample begins with noise.")
        embeds, text = self._linked(inputs.get("image_embeds")), self._linked(inputs.get("text_embeds"))
        if embeds is None or self._class(embeds[0]) not in ("WanVideoVACEEncode", "WanVideoEmptyEmbeds"):
            raise _NotConvertedError(f"{self._name(key)} is not given what WanVideo VACE Encode makes.")
        size = self._inputs(embeds[0])
        frames = self._frame_count(embeds[0], "num_frames", size.get("input_frames") is not None)
        source = self._linked(size.get("input_frames"))
        ends = source is not None and self._class(source[0]) == "WanVideoVACEStartToEndFrame"
        masked = source is not None and size.get("input_masks") is not None and not ends
        sides = self._side(embeds[0], "width", masked), self._side(embeds[0], "height", masked)
        taken = {"model", "image_embeds", "text_embeds", "steps", "cfg", "shift", "seed", "samples"}
        for name, value in inputs.items():
            if name not in taken and self._linked(value) is not None:
                self._note(key, f"{name} is not carried over.")
        prompts = self._wrapper_prompts(key, text)
        return self._sampler(
            key,
            model=[self._wrapper_model(inputs.get("model")), 0],
            prompt=prompts[0],
            negative_prompt=prompts[1],
            size=(*sides, frames),
            settings={
                **{name: inputs.get(name) for name in ("steps", "cfg", "shift", "seed")},
                **self._wrapper_sampling(key, inputs),
            },
            task=self._wrapper_task(embeds[0], (*sides, frames))
            if self._class(embeds[0]) == "WanVideoVACEEncode"
            else None,
        )

    def _wrapper_sampling(self, key: str, inputs: dict[str, Any]) -> dict[str, str]:
        """Return the sampler and the schedule that a WanVideoSampler's scheduler stands for."""
        scheduler, steps = str(inputs.get("scheduler", "unipc")), inputs.get("steps")
        name, _, schedule = scheduler.partition("/")
        if schedule:
            self._note(key, f"the schedule {clipped(scheduler)} is not carried over: that of {name} is taken.")
        if name == "flowmatch_causvid" and isinstance(steps, int) and 0 < steps < len(CAUSVID):
            levels = ", ".join(str(timestep / TRAINING_STEPS) for timestep in CAUSVID[:steps])
            return {"sampler": "euler", "sigmas": levels}
        if name in FLOW_MATCH:
            return {"sampler": "euler", "scheduler": FLOW_MATCH[name]}
        if name in WRAPPER_SAMPLERS:
            return {"sampler": WRAPPER_SAMPLERS[name]}
        self._note(
            key, f"the scheduler {clipped(name)} is not carried over: VACE Sample has {', '.join(SAMPLERS[1:])}."
        )
        return {}

    def _wrapper_prompts(self, key: str, text: tuple[str, int] | None) -> tuple[Any, Any]:
        encoders = ("WanVideoTextEncode", "WanVideoTextEncodeCached")
        if text is not None and self._class(text[0]) == "WanVideoTextEmbedBridge":
            inputs = self._inputs(text[0])
            negative = self._linked(inputs.get("negative"))
            return self._prompt(self._linked(inputs.get("positive"))), "" if negative is None else self._prompt(
                negative
            )
        if text is None or self._class(text[0]) not in encoders:
            raise _NotConvertedError(f"{self._name(key)} takes its prompts from no text encoder that is known.")
        inputs = self._inputs(text[0])
        return self._value(inputs.get("positive_prompt", "")), self._value(inputs.get("negative_prompt", ""))

    def _wrapper_model(self, value: Any) -> str:
        found = self._linked(value)
        loras: list[tuple[str, Any, Any]] = []
        passed: set[str] = set()
        while found is not None and self._class(found[0]) != "WanVideoModelLoader":
            inputs = self._inputs(found[0])
            loras += self._wrapper_loras(inputs.get("lora"))
            if self._class(found[0]) not in ("WanVideoSetLoRAs", "WanVideoSetBlockSwap"):
                self._note(found[0], f"{self._class(found[0])} is not carried over.")
            found = self._before(found[0], "model", passed)
        if found is None:
            raise _NotConvertedError("the sampler's model comes from no loader that is known.")
        inputs = self._inputs(found[0])
        loras += self._wrapper_loras(inputs.get("lora"))
        if "fp8" in str(inputs.get("quantization")):
            self._note(found[0], "quantization is not carried over: memory is auto, which takes FP8 where it has to.")
        return self._model(found[0], inputs.get("model"), loras)

    def _wrapper_loras(self, value: Any) -> list[tuple[str, Any, Any]]:
        """Return (node, file, strength) of the LoRAs of a chain of selectors, the last one first."""
        loras: list[tuple[str, Any, Any]] = []
        passed: set[str] = set()
        found = self._linked(value)
        while found is not None:
            key, inputs = found[0], self._inputs(found[0])
            if self._class(key) == "WanVideoLoraSelect":
                loras.append((key, inputs.get("lora"), inputs.get("strength", 1.0)))
            elif self._class(key) == "WanVideoLoraSelectMulti":
                several = [(key, inputs.get(f"lora_{n}"), inputs.get(f"strength_{n}", 1.0)) for n in range(5)]
                loras += [each for each in reversed(several) if each[1] not in (None, "", "none") and each[2] != 0]
            else:
                self._note(key, f"{self._class(key)} is not carried over.")
            found = self._before(key, "prev_lora", passed)
        return loras

    def _wrapper_task(self, key: str, size: tuple[Any, Any, Any]) -> Link | None:
        inputs = self._inputs(key)
        earlier = self._linked(inputs.get("prev_vace_embeds"))
        task = None
        if earlier is not None and self._class(earlier[0]) == "WanVideoVACEEncode":
            if inputs.get("input_frames") is not None and self._inputs(earlier[0]).get("input_frames") is not None:
                raise _NotConvertedError(
                    f"{self._name(key)} and {self._name(earlier[0])} both have frames; their strengths are added up, "
                    "which has no counterpart here."
                )
            task = self._wrapper_task(earlier[0], size)
        task = self._reference(inputs.get("ref_images"), task)
        if inputs.get("input_frames") is None:
            return task
        strength = {
            "strength": inputs.get("strength", 1.0),
            "start_percent": inputs.get("vace_start_percent", 0.0),
            "end_percent": inputs.get("vace_end_percent", 1.0),
        }
        frames = self._linked(inputs["input_frames"])
        if frames is not None and self._class(frames[0]) == "WanVideoVACEStartToEndFrame":
            return self._extended(key, frames[0], size=size, task=task, strength=strength)
        source = inputs["input_frames"], inputs.get("input_masks")
        return self._edited(key, source, size=size, task=task, strength=strength)

    def _extended(
        self, key: str, helper: str, *, size: tuple[Any, Any, Any], task: Link | None, strength: dict[str, Any]
    ) -> Link:
        """Return the task of a first and a last frame, and of control frames between them."""
        inputs = self._inputs(helper)
        if inputs.get("start_index", 0) != 0 or inputs.get("end_index", -1) != -1:
            raise _NotConvertedError(
                f"{self._name(helper)} puts frames elsewhere than at both ends. Use VACE: Extend."
            )
        first, last = inputs.get("start_image"), inputs.get("end_image")
        if inputs.get("control_images") is not None:
            source = inputs["control_images"], inputs.get("inpaint_mask")
            task = self._edited(key, source, size=size, task=task, strength=strength)
        elif strength != {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}:
            self._note(key, "strength and its steps are not carried over: given frames have none.")
        if first is None and last is None:
            if task is None:
                raise _NotConvertedError(f"{self._name(helper)} is given no frames.")
            return task
        made = self._add(
            "PiyingVACEExtend",
            helper,
            task=task,
            first=None if first is None else self._value(first),
            last=None if last is None else self._value(last),
            num_frames=size[2],
            count="in all",
            times="",
            clip_frames=0,
            fps=16.0,
            keep=False,
            fit="crop",
        )
        return [made, 0]
