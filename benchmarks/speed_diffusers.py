"""diffusers as a contender of the speed benchmark: the plain pipeline, and each cache of `enable_cache`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from types import SimpleNamespace
from typing import Any

import torch
from measuring import clock
from speed_case import Made, Setting, counted, piying
from speed_ours import WHEN, Given

# What another library's code raises where it does not fit a model.
UNFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)
ROUNDING = 1e-4  # relative: what differs by less is the same
# TaylorSeer looks for whole names, and its own patterns end before the number of an attention.
ATTENTIONS = r"(vace_)?blocks\.\d+\.attn[12]"


class Pipeline:
    """WanVACEPipeline with its loop over the steps timed."""

    def __init__(self, setting: Setting) -> None:
        from diffusers import UniPCMultistepScheduler, WanVACEPipeline

        kind = torch.float32 if setting.device == "cpu" else torch.bfloat16
        made = WanVACEPipeline.from_pretrained(setting.folder, dtype={"default": kind, "vae": torch.float32})
        made.scheduler = UniPCMultistepScheduler.from_config(made.scheduler.config, flow_shift=setting.shift)
        made.progress_bar = self._timed  # which the pipeline puts around its loop
        self.setting, self.made, self.kind = setting, made.to(setting.device), kind
        self._seconds, self._pretended = 0.0, WHEN

    @contextmanager
    def _timed(self, total: int) -> Iterator[Any]:
        begun = clock(self.setting.device)
        yield SimpleNamespace(update=lambda: None)
        self._seconds = clock(self.setting.device) - begun

    def when(self) -> float:
        """Return the time step the pipeline is at, 0..1000, for caches that ask."""
        now = self.made.current_timestep
        return self._pretended if now is None else float(now)

    @contextmanager
    def cached(self, cache: Cache | None) -> Iterator[None]:
        """Have the transformer use a cache, freshly started."""
        config, transformer = cache and cache.config(self), self.made.transformer
        try:
            if config is not None:
                transformer.enable_cache(config)
            yield
        finally:
            if transformer.is_cache_enabled:
                transformer.disable_cache()

    def video(self, text: str, seed: int, cache: Cache | None = None) -> Made:
        """Return a video of a caption."""
        setting = self.setting
        with self.cached(cache), counted(self.made.transformer) as count:
            frames = self.made(
                prompt=text,
                negative_prompt="",
                width=setting.width,
                height=setting.height,
                num_frames=setting.frames,
                num_inference_steps=setting.steps,
                guidance_scale=setting.cfg,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).frames[0]
        return Made(frames, self._seconds, count.predictions)

    @cached_property
    def magnitudes(self) -> list[float]:
        """MagCache's ratios for this model, which its calibration prints: for the prompt, then the negative one."""
        from diffusers import MagCacheConfig

        steps, said = self.setting.steps, StringIO()
        calibration = Cache("", lambda _: MagCacheConfig(calibrate=True, num_inference_steps=steps))
        with redirect_stdout(said):
            self.video("a red circle moves right", 0, calibration)
        printed = [line for line in said.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
        found: list[float] = ast.literal_eval(printed[0])
        return found

    def worst_repeat(self, cache: Cache, given: Given) -> float:
        """Return how far a cache's answers are off where nothing changes: the same inputs in every step.

        Whatever a cache takes again is then exactly right, if it is put in its place. Relative, as a root mean
        square, the worst of all steps and both prompts; the answers it is held against are those without a cache.
        Caches are told the time steps of a real run.
        """
        transformer, kind = self.made.transformer, self.kind
        asked = {
            "hidden_states": given.noise.to(kind),
            "timestep": torch.tensor([WHEN], device=given.noise.device),
            "control_hidden_states": given.control.to(kind),
            "return_dict": False,
        }

        def answers() -> list[torch.Tensor]:
            found = []
            for name, embeds in zip(("cond", "uncond"), given.embeds, strict=True):
                with transformer.cache_context(name):
                    found.append(transformer(encoder_hidden_states=embeds.to(kind), **asked)[0].float())
            return found

        with torch.no_grad():
            right, worst = answers(), 0.0
            with self.cached(cache):
                for time in self._times():
                    self._pretended = time
                    worst = max(worst, *(_off(one, other) for one, other in zip(answers(), right, strict=True)))
        return worst

    def _times(self) -> list[float]:
        self.made.scheduler.set_timesteps(self.setting.steps)
        return list(map(float, self.made.scheduler.timesteps))


def _off(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


@dataclass(frozen=True)
class Cache:
    """A name, and what gives diffusers' configuration for a pipeline."""

    name: str
    config: Callable[[Pipeline], Any]


def caches() -> list[Cache]:
    """Return the caches of diffusers as they come; those with a threshold at ours, TaylorSeer also kept from the ends.

    TaylorSeer remembers in the model's number type: bfloat16, its default, is for cards.
    """
    import diffusers as d

    def taylor(pipeline: Pipeline, **options: Any) -> Any:
        return d.TaylorSeerCacheConfig(taylor_factors_dtype=pipeline.kind, **options)

    def magnitude(pipeline: Pipeline) -> Any:
        steps = pipeline.setting.steps
        return d.MagCacheConfig(threshold=0.06, num_inference_steps=steps, mag_ratios=pipeline.magnitudes)

    return [
        Cache("first-block cache 0.06", lambda _: d.FirstBlockCacheConfig(0.06)),
        Cache("first-block cache 0.12", lambda _: d.FirstBlockCacheConfig(0.12)),
        Cache("MagCache 0.06", magnitude),
        Cache("TaylorSeer", taylor),
        Cache("TaylorSeer, attention named", lambda p: taylor(p, cache_identifiers=[ATTENTIONS])),
        Cache("TaylorSeer Lite", lambda p: taylor(p, use_lite_mode=True)),
        Cache("TaylorSeer Lite, every other step", lambda p: taylor(p, use_lite_mode=True, **_inside(p))),
        Cache(
            "pyramid attention broadcast",
            lambda p: d.PyramidAttentionBroadcastConfig(2, current_timestep_callback=p.when),
        ),
        Cache("FasterCache", lambda p: d.FasterCacheConfig(current_timestep_callback=p.when)),
        Cache(
            "FasterCache, as if distilled",
            lambda p: d.FasterCacheConfig(current_timestep_callback=p.when, is_guidance_distilled=True),
        ),
        Cache("SeaCache", lambda _: d.SeaCacheConfig()),
        Cache("TextKVCache", lambda _: d.TextKVCacheConfig()),
    ]


def _inside(pipeline: Pipeline) -> dict[str, int]:
    """Return TaylorSeer's words for what our step_cache keeps to: not the first steps, not the last."""
    ours, steps = piying("core.wan.step_cache"), pipeline.setting.steps
    first = max(ours.MIN_FIRST, round(ours.FIRST_SHARE * steps))
    return {"cache_interval": 2, "disable_cache_before_step": first, "disable_cache_after_step": steps - ours.LAST}


def tried(pipeline: Pipeline, cache: Cache, plain: Made, text: str, given: Given) -> tuple[bool, str]:
    """Return whether a cache does anything, and what there is to say of it.

    Args:
        plain: the video of `text` with seed 0, without a cache.
        given: inputs to repeat.
    """
    cache.config(pipeline)  # what is wrong with our words for it is no fault of the cache
    try:
        made, off = pipeline.video(text, 0, cache), pipeline.worst_repeat(cache, given)
    except UNFIT as error:
        return False, f"it fails: {type(error).__name__}: {error}"
    if made.predictions == plain.predictions and (made.frames == plain.frames).all():
        return False, "it runs and leaves nothing out"
    return True, f"asked the same in every step, its answers are off by up to {off:.1%}" if off > ROUNDING else ""
