"""Score the built-in models: `python -m training.evaluate video --count 200`.

Pictures are drawn by the genuine pipelines, from captions of scenes that training left out, and read
from their pixels. `ceiling` reads drawn clips and autoencoded ones the same way: no model can do better.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    HunyuanDiTPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVACEPipeline,
)
from PIL import Image

from .data import CAPTION_SPREAD, clips
from .language import LANGUAGES, Scene, caption, scenes
from .precision import PRECISIONS, lower
from .prompt_score import score as score_prompts
from .reading import VideoReading, read_video
from .short_prompts import PRESETS
from .task_score import score_tasks
from .video_sampling import Sampling, draw_video

BUILT_IN = Path(__file__).resolve().parents[1] / "builtin_models"
ATTRIBUTES = ("background", "colour", "shape", "motion")


def unseen(count: int, seed: int, moving: bool = True) -> list[tuple[Scene, str]]:
    """Return scenes that training left out with captions in both languages in turn."""
    draw = random.Random(f"unseen {seed}")
    pool = [scene for scene in scenes(moving) if scene.held_out]
    chosen = [draw.choice(pool) for _ in range(count)]
    return [(scene, caption(scene, LANGUAGES[index % 2], draw)) for index, scene in enumerate(chosen)]


def tally(results: Iterable[tuple[Scene, VideoReading]], attributes: Iterable[str]) -> dict[str, float]:
    """Return the share of videos that show what their scene says, and exactly one object."""
    rows = [
        [getattr(reading, name) == getattr(scene, name) for name in attributes] + [reading.count == 1]
        for scene, reading in results
    ]
    shares = np.mean(rows, axis=0)
    return {name: round(float(share), 3) for name, share in zip((*attributes, "one_object"), shares, strict=True)}


def ceiling(folder: Path, count: int, sampling: Sampling) -> dict[str, Any]:
    """Return the scores of drawn clips and of the same clips through both autoencoders."""
    video = load(WanVACEPipeline, folder / "wan_vace").vae
    image = load(HunyuanDiTPipeline, folder / "hunyuan_dit").vae

    def through_video(clip: torch.Tensor) -> torch.Tensor:
        latents = video.encode(clip.transpose(0, 1)[None]).latent_dist.mode()
        return video.decode(latents).sample[0].transpose(0, 1)

    def through_image(clip: torch.Tensor) -> torch.Tensor:
        return image.decode(image.encode(clip[::4]).latent_dist.mode()).sample

    kinds: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "drawn": lambda clip: clip,
        "video_autoencoder": through_video,
        "image_autoencoder": through_image,
    }
    return {name: tally(_read_clips(count, sampling, change), ATTRIBUTES) for name, change in kinds.items()}


def _read_clips(
    count: int, sampling: Sampling, change: Callable[[torch.Tensor], torch.Tensor]
) -> list[tuple[Scene, VideoReading]]:
    torch.manual_seed(sampling.seed)
    results = []
    for scene, _ in unseen(count, sampling.seed):
        clip = clips([scene], sampling.frames, sampling.width, sampling.height)[0]
        with torch.no_grad():
            changed = change(clip).clamp(-1, 1)
        results.append((scene, read_video(changed.permute(0, 2, 3, 1).numpy() / 2 + 0.5)))
    return results


def load(kind: type[DiffusionPipeline], folder: Path) -> Any:
    """Return a pipeline read from its folder in fp32."""
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, **(without if kind is HunyuanDiTPipeline else {}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_video(folder: Path, sampling: Sampling, precision: str = "fp32") -> WanVACEPipeline:
    """Return the Wan VACE pipeline with the timestep shift and the precision asked for; its VAE stays fp32."""
    pipeline = load(WanVACEPipeline, folder)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=sampling.shift)
    lower(pipeline.transformer, precision)
    lower(pipeline.text_encoder, precision)
    return pipeline


def load_image(folder: Path, precision: str = "fp32") -> HunyuanDiTPipeline:
    """Return the Hunyuan-DiT pipeline in the precision asked for."""
    pipeline = load(HunyuanDiTPipeline, folder)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        lower(part, precision)
    if precision == "bf16":
        pipeline.vae.to(torch.bfloat16)  # the pipeline hands it latents as they are
    return pipeline


def score_video(pipeline: WanVACEPipeline, count: int, sampling: Sampling) -> dict[str, float]:
    """Return the share of text-to-video clips that show what was asked."""
    results = []
    for index, (scene, text) in enumerate(unseen(count, sampling.seed)):
        frames = draw_video(pipeline, text, sampling, seed=sampling.seed + index)
        results.append((scene, read_video(frames)))
        _report(index, text, scene, results[-1][1], ATTRIBUTES)
    return tally(results, ATTRIBUTES)


def score_frames(folder: Path, count: int, sampling: Sampling) -> dict[str, dict[str, float]]:
    """Return the shares of the Wan Video model's clips that show what was asked, from text and from a first frame."""
    results: dict[str, list[tuple[Scene, VideoReading]]] = {"text": [], "first": []}
    kinds = {"text": WanPipeline, "first": WanImageToVideoPipeline}
    for name, kind in kinds.items():
        pipeline = load(kind, folder)
        pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=sampling.shift)
        torch.manual_seed(sampling.seed)
        for index, (scene, text) in enumerate(unseen(count, sampling.seed)):
            clip = clips([scene], sampling.frames, sampling.width, sampling.height, CAPTION_SPREAD)[0]
            picture = Image.fromarray(((clip[0].permute(1, 2, 0) * 0.5 + 0.5) * 255).round().byte().numpy())
            frames = draw_video(
                pipeline, text, sampling, sampling.seed + index, **({"image": picture} if name == "first" else {})
            )
            results[name].append((scene, read_video(frames)))
            _report(index, f"{name}: {text}", scene, results[name][-1][1], ATTRIBUTES)
    return {name: tally(found, ATTRIBUTES) for name, found in results.items()}


def score_image(pipeline: HunyuanDiTPipeline, count: int, sampling: Sampling) -> dict[str, float]:
    """Return the share of pictures that show what was asked."""
    results = []
    for index, (scene, text) in enumerate(unseen(count, sampling.seed, moving=False)):
        picture = pipeline(
            text,
            width=sampling.width,
            height=sampling.height,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.cfg,
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(sampling.seed + index),
            output_type="np",
        ).images
        results.append((scene, read_video(picture)))
        _report(index, text, scene, results[-1][1], ATTRIBUTES[:3])
    return tally(results, ATTRIBUTES[:3])


def _report(index: int, text: str, scene: Scene, reading: VideoReading, attributes: Iterable[str]) -> None:
    wrong = {name: getattr(reading, name) for name in attributes if getattr(reading, name) != getattr(scene, name)}
    if wrong:
        print(f"{index}: {text!r} shows {wrong}", flush=True)


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Score the built-in models.")
    parser.add_argument("what", choices=("prompt", "video", "tasks", "frames", "image", "ceiling"))
    parser.add_argument("--models", type=Path, default=BUILT_IN)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of transformer and text encoders")
    parser.add_argument("--tasks", nargs="*", default=None, help="only these VACE tasks")
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="what prompts are for")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Score one model and print the scores as JSON."""
    given = parse()
    torch.set_num_threads(given.threads)
    sampling = Sampling(given.width, given.height, given.frames, given.steps, given.cfg, given.shift, given.seed)
    scores: dict[str, Any]
    if given.what == "prompt":
        scores = score_prompts(given.models / "prompt", given.count, given.seed, presets=given.presets)
    elif given.what == "image":
        scores = score_image(load_image(given.models / "hunyuan_dit", given.precision), given.count, sampling)
    elif given.what == "frames":
        scores = score_frames(given.models / "wan_video", given.count, sampling)
    elif given.what == "ceiling":
        scores = ceiling(given.models, given.count, sampling)
    else:
        pipeline = load_video(given.models / "wan_vace", sampling, given.precision)
        video = given.what == "video"
        scores = (
            score_video(pipeline, given.count, sampling)
            if video
            else score_tasks(pipeline, given.count, sampling, given.tasks)
        )
    print(json.dumps(scores, ensure_ascii=False))


if __name__ == "__main__":
    main()
