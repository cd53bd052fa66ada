"""Rounds of the speed benchmark: all contenders on the same captions, in turn."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from apart import ComfyUI
from floors import rates
from speed_case import Made, Setting, piying
from speed_diffusers import Cache, Pipeline, caches, tried
from speed_judge import judged, scenes, summed
from speed_ours import MEASURES, REFERENCE, Given, Ours

Video = Callable[[str, int], Made]


class Contest:
    """All contenders on the captions, in turn."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        choose, host = piying("core.catalog.selection"), piying("core.host.headless").HeadlessHost()
        found = choose.choose_model(choose.ModelHandle(piying("core.wan.family").WAN_VACE, options.model), host)
        self.setting = Setting(found.path, options.model, options.device, options.steps)
        self.scratch = scratch
        self.ours = Ours(self.setting, scratch)
        self.notes: dict[str, str] = {}
        self.versions: dict[str, Any] = {}

    def wanted(self, name: str) -> bool:
        """Whether a contender was asked for; what all are compared with always is."""
        return name == REFERENCE or any(text in name for text in self.options.ways)

    def run(self) -> dict[str, Any]:
        """Return the figures of all contenders."""
        best, known = rates(self.options.device), scenes(self.options.captions)
        with ExitStack() as stack:
            stack.enter_context(self.ours.timed())
            contenders = self._contenders(known[0][1], stack)
            rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
            for index, (scene, text) in enumerate(known):
                reference = None
                for name, video in contenders.items():
                    made = video(text, index)
                    reference = made if reference is None else reference
                    rows[name].append(_row(made) | judged(scene, made.frames, reference.frames))
        best, (flops, weights) = best.or_better(rates(self.options.device)), self.ours.cost()
        each = best.floor(flops, weights)  # of a prediction
        return {
            **self.versions,
            "flops_per_second": best.flops,
            "bytes_per_second": best.bandwidth,
            "flops_per_prediction": flops,
            "bytes_of_weights": weights,
            "measures": {name: summed(several, each) for name, several in rows.items()},
            "notes": self.notes,
        }

    def _contenders(self, text: str, stack: ExitStack) -> dict[str, Video]:
        """Return all contenders, warmed up: models are read, kernels are chosen. The reference is the first."""
        found = {name: self._ours(measure) for name, measure in MEASURES.items() if self.wanted(name)}
        self.ours.predict_first = True
        self.ours.video(text, 0, {})
        self.ours.predict_first = False
        assert self.ours.given is not None
        given = self.ours.given
        if self._caches() or self.wanted("diffusers"):
            found |= self._diffusers(text, given)
        if self.options.comfyui and self.wanted("ComfyUI"):
            found["ComfyUI"] = self._comfyui(given, stack)
        return found

    def _ours(self, measure: dict[str, Any]) -> Video:
        return lambda text, seed: self.ours.video(text, seed, measure)

    def _caches(self) -> dict[str, Cache]:
        named = {f"diffusers, {cache.name}": cache for cache in caches()}
        return {name: cache for name, cache in named.items() if self.wanted(name)}

    def _diffusers(self, text: str, given: Given) -> dict[str, Video]:
        """Return the plain pipeline, and with each cache that does anything here; notes say why others do not."""
        pipeline = Pipeline(self.setting)
        plain, found = pipeline.video(text, 0), {"diffusers": _of(pipeline, None)}
        for name, cache in self._caches().items():
            works, note = tried(pipeline, cache, plain, text, given)
            if works:
                found[name] = _of(pipeline, cache)
            if note:
                self.notes[name] = note
        return found

    def _comfyui(self, given: Given, stack: ExitStack) -> Video:
        program = stack.enter_context(
            ComfyUI(self.options.comfyui, self.options.comfyui_python, self.setting, self.scratch)
        )
        answer = program.agrees(given)
        self.versions = {"comfyui": answer["version"], "comfyui's torch": answer["torch"]}
        self.notes["ComfyUI"] = f"on the same input its prediction differs from ours by {answer['off']:.1e}"
        program.video(given, self.ours)

        def video(_: str, __: int) -> Made:
            assert self.ours.given is not None  # of the same caption: ours come first
            return program.video(self.ours.given, self.ours)

        return video


def _of(pipeline: Pipeline, cache: Cache | None) -> Video:
    return lambda text, seed: pipeline.video(text, seed, cache)


def _row(made: Made) -> dict[str, Any]:
    return {
        "seconds": made.seconds,
        "predictions": made.predictions,
        # Only ours say so; of others the predictions tell.
        "steps left out": made.record.get("steps_forecast", 0) if made.record else None,
    }
