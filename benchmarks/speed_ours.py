"""The pack as a contender of the speed benchmark, with sampling alone timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from measuring import clock
from speed_case import Made, Setting, counted, piying

REFERENCE = "reference"
MEASURES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "both prompts in one batch": {"batch_cfg": True},
    "speed balanced": {"speed": "balanced"},
    "speed fast": {"speed": "fast"},
    "speed draft": {"speed": "draft"},
    "two thirds of the steps": {"steps": 2 / 3},
    "half the steps": {"steps": 0.5},
    "step_cache 0.12": {"step_cache": 0.12},
    "step_cache 0.25": {"step_cache": 0.25},
    "cfg_end 0.8": {"cfg_end": 0.8},
    "cfg_end 0.6": {"cfg_end": 0.6},
    "cfg_start 0.2": {"cfg_start": 0.2},
    "cfg_start 0.4": {"cfg_start": 0.4},
}


@dataclass
class Given:
    """What our sampling loop was given last: others start from the very same.

    Attributes:
        noise: float32 [1, z, T, h, w].
        embeds: [1, 512, d] of the prompt and of the negative prompt.
        control: [1, 2z + 64, T, h, w].
        first: what the transformer predicts for both prompts from the noise at `WHEN`; empty unless asked for.
    """

    noise: torch.Tensor
    embeds: list[torch.Tensor]
    control: torch.Tensor
    first: list[torch.Tensor] = field(default_factory=list)


WHEN = 500.0  # the time step at which programs are compared, 0..1000


class Ours:
    """Samples videos through the way in that the nodes take."""

    def __init__(self, setting: Setting, cache: Path) -> None:
        choose = piying("core.catalog.selection")
        self.setting = setting
        self.handle = choose.ModelHandle(piying("core.wan.family").WAN_VACE, setting.model)
        self.host = piying("core.host.headless").HeadlessHost(chosen_device=setting.device, cache=cache)
        self.given: Given | None = None
        self.predict_first = False
        self._seconds, self._predictions = 0.0, 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Have the loop over the steps note what it was given, how long it took and how much it computed."""
        run = piying("core.wan.video_run")
        denoise = run.denoise

        def watched(transformer: Any, sampler: Any, noise: Any, embeds: Any, *, control: Any, **named: Any) -> Any:
            self.given = Given(noise, embeds, control, self._first(transformer, noise, embeds, control))
            with counted(transformer) as count:
                begun = clock(self.setting.device)
                latents = denoise(transformer, sampler, noise, embeds, control=control, **named)
                self._seconds = clock(self.setting.device) - begun
            self._predictions = count.predictions
            return latents

        run.denoise = watched
        try:
            yield
        finally:
            run.denoise = denoise

    def _first(self, transformer: Any, noise: Any, embeds: Any, control: Any) -> list[torch.Tensor]:
        if not self.predict_first:
            return []
        when = torch.tensor([WHEN], device=noise.device)
        predict = piying("core.wan.transformer").predict
        flows = predict(transformer, noise.to(control.dtype), when, embeds=embeds, control=control)
        return [each.float() for each in flows]

    def video(self, text: str, seed: int, measure: dict[str, Any]) -> Made:
        """Return a video of a caption."""
        setting = self.setting
        request = piying("core.wan.request").WanRequest(
            text,
            "",
            setting.width,
            setting.height,
            setting.frames,
            steps=setting.steps,
            cfg=setting.cfg,
            shift=setting.shift,
            seed=seed,
        )
        if "steps" in measure:
            measure = {**measure, "steps": round(measure["steps"] * setting.steps)}
        for path in (self.host.cache_folder() / "latents").glob("*"):
            path.unlink()  # nothing is taken from a run before
        frames, record = piying("core.wan.run").sample(self.handle, replace(request, **measure), self.host)
        return Made(frames.numpy(), self._seconds, self._predictions, record)

    @cached_property
    def _vae(self) -> Any:
        from diffusers import AutoencoderKLWan

        return AutoencoderKLWan.from_pretrained(self.setting.folder / "vae").to(self.setting.device)

    def frames(self, latents: torch.Tensor) -> Any:
        """Return the frames [n, h, w, 3] in 0..1 of someone else's latents, decoded as ours are."""
        with torch.no_grad():
            return piying("core.wan.decode").decode(self._vae, latents, tiled=False, on_step=lambda done: None).numpy()

    def cost(self) -> tuple[float, float]:
        """Return the floating point operations of one prediction, and the bytes of the weights."""
        memory, setting = piying("core.wan.phases"), self.setting
        transformer = piying("core.wan.model").load(self.handle, self.host).components()["transformer"]
        tokens = memory.latent_frames(setting.frames) * (setting.width // 16) * (setting.height // 16)
        kind = "fp32" if setting.device == "cpu" else "bf16"
        return float(tokens * sum(memory.flops_per_token(transformer, tokens))), float(transformer.bytes(kind, kind))
