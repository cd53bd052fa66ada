"""Wan VACE runs: a request → frames, under the best plan that holds; a finished phase is not run again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..errors import short_text
from ..executor.execute_plan import Meter, execute_plan
from ..executor.placement import placed
from ..executor.retry import finite_check
from ..executor.tensor_cache import TensorCache, digest
from ..files.dtypes import torch_dtype
from ..host.base import Host, Reporter
from ..lora.catalog import lora_notes, record_of
from ..preview import LatentPreview, fit_colours, step_report
from .attention import Attention, attention_for
from .conditioning import (
    VAE_STRIDE,
    TaskCache,
    Tensors,
    VACEInputs,
    append_mask,
    encode_prompts,
    encode_task,
    encode_video,
    paste,
    prepare,
)
from .decode import decode, decode_steps, tiling
from .denoise import denoise
from .distilled import with_distilled
from .experts import EXPERT_PHASES, SamplingState, boundary_of, has_two_experts, sampler_on
from .long.timeline import has_times
from .model import WanVACEModel, check_guidance, load, warn_if_not_made_for, with_published_sampler
from .nag import nag_enabled
from .phases import BATCHED, VideoWork, fitting, phases, what_fits
from .request import AUTO_VAE, SDPA, VACERequest, check_request
from .schedule import schedule_notes
from .speed import speed_notes, with_speed
from .step_cache import StepCache
from .transformer import block_order, compiled_blocks, reason_not_to_compile

if TYPE_CHECKING:
    import torch
    from diffusers import WanVACETransformer3DModel

    from ..planner.plan_types import PhasePlan, Plan
    from .task.canvas import Canvas
    from .task.vace_task import VACETask

log = logging.getLogger("piying")


LARGE_CFG = 20  # far above what the models are published with
MAX_CACHED_LATENTS = 4  # videos whose latents outlive the run, 20 MB each at 720p


def sample(
    handle: ModelHandle,
    request: VACERequest,
    host: Host,
    task: VACETask | None = None,
    *,
    on_canvas: Callable[[Canvas], None] = lambda canvas: None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video.

    Without a task the result equals `WanVACEPipeline.__call__` on the same weights with
    `UniPCMultistepScheduler(flow_shift=shift)` and a CPU generator seeded with `seed`.

    Args:
        handle: the model.
        request: what to make.
        host: the program around the run.
        task: what the video is made from beside its prompt.
        on_canvas: called with what the model is shown of the task.

    Returns:
        Frames as a float32 CPU tensor [num_frames, height, width, 3] in 0..1, and a record of what
        ran, fit for JSON.

    Raises:
        PiyingError: the request, the task, the model or the device cannot be used, or no plan fits
            the machine; the text says why.
    """
    check_request(request)
    if has_times(request.prompt):
        log.warning("The prompt has times, which VACE Long Video follows: here they are read as words.")
    handle, request = with_distilled(handle, request, host)
    inputs = prepare(task, request.width, request.height, request.num_frames)
    on_canvas(inputs.canvas)
    frames, record = sample_inputs(handle, request, inputs, host, has_task=task is not None)
    return paste(frames, inputs), record | ({"task": task.describe()} if task else {})


def sample_inputs(
    handle: ModelHandle,
    request: VACERequest,
    inputs: VACEInputs,
    host: Host,
    *,
    has_task: bool,
    reporter: Reporter | None = None,
    on_latents: Callable[[torch.Tensor], None] | None = None,
    logged_plans: set[str] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one video from prepared inputs; kept pixels are as the model gives them.

    Args:
        has_task: whether there is a video to follow or keep.
        reporter: shown the phases' progress in place of the host.
        on_latents: called with the latents [1, z, T, h, w], float32 on the CPU, before they are decoded.
        logged_plans: plans, and lines about the prompt, that were logged for videos much like this one; they are not
            logged again, and new ones are added.

    Returns:
        Frames and a record, as `sample` does.

    Raises:
        PiyingError: the model or the device cannot be used, or no plan fits the machine.
    """
    import torch

    model = load(handle, host)
    check_guidance(request.guidance, model.found)
    asked, request = request, with_published_sampler(with_speed(request), model.parts.loras)
    # A long video says once what is true of all its windows.
    if not logged_plans:
        for sentence in speed_notes(asked, request):
            log.info("Speed: %s", sentence)
        for sentence in schedule_notes(asked):
            log.info("Schedule: %s", sentence)
        for sentence in handle.family.cautions(model.found.name, request):
            log.warning("%s", sentence)
        if model.found.caution:
            log.warning("%s", model.found.caution)
        warn_if_not_made_for(request, model.parts.loras)
        for sentence in expert_notes(request, model):
            log.info("%s", sentence)
    components, device = model.components(), host.device()
    attention = attention_for(request.attention, request.speed, device, model.found.is_built_in)
    experts = model.experts(request)
    work = replace(VideoWork.of(asked, len(inputs.references), has_task, (attention.why,)), high_steps=experts)
    run = VACERun(
        model,
        request,
        inputs,
        host,
        reporter=reporter or host,
        meter=Meter(device),
        attention=attention,
        cache=StepCache(request.step_cache) if request.step_cache else None,
        on_latents=on_latents,
        logged=logged_plans,
        high_steps=experts,
    )
    with torch.no_grad():
        frames, ran = execute_plan(
            phases(components, work),
            handle,
            host,
            run,
            what_fits=lambda machine: what_fits(fitting(components, machine, handle, work), work),
            logged_plans=logged_plans,
            causes=run.non_finite_causes(),
        )
    if run.cache is not None and run.cache.skipped:
        log.info("Speed: %d of %d steps were forecast.", run.cache.skipped, request.steps)
    record = {"model": model.found.name, **record_of(model.parts.loras), **ran, **asdict(request)}
    return frames, record | run.record()


def expert_notes(request: VACERequest, model: WanVACEModel) -> list[str]:
    """Return what is to be said of a model's experts, or of settings for experts where it has none, as sentences."""
    notes = lora_notes(model.parts.loras, has_two=has_two_experts(model.found))
    by_hand = [name for name in ("boundary", "cfg_2") if getattr(request, name)]
    if by_hand and not has_two_experts(model.found):
        is_are = "are" if len(by_hand) > 1 else "is"
        notes.append(f"{' and '.join(by_hand)} {is_are} without effect: {model.found.name} has one transformer.")
    return notes


@dataclass(frozen=True)
class Expert:
    """A transformer and the steps that it takes.

    Attributes:
        choice: how its phase runs.
        request: with its guidance scale.
        first, end: its steps, the last one not included.
        title: which of two it is; "" where there is one.
    """

    choice: PhasePlan
    request: VACERequest
    first: int
    end: int
    title: str = ""


@dataclass
class VACERun:
    """One run: a request and what its finished phases left. `attempt` may be called again after running out of memory.

    Attributes:
        reporter: shown the phases' progress; it may be one window of a long video.
        attention: which kernel computes it.
        cache: forecasts steps that hardly differ; None computes every one.
        on_latents: called with the video's latents [1, z, T, h, w] before they are decoded.
        logged: what was logged for videos much like this one.
        high_steps: how many steps the first of two experts has; None where there is one transformer.
        embeds, control, latents: results of finished phases, on the CPU.
        halfway: what the first of two experts has left.
        colours: the preview's map from latent channels to colour.
        not_compiled: why blocks were not compiled though that was asked for; "" where they were, and None where it
            was not asked for or nothing was sampled.
    """

    model: WanVACEModel
    request: VACERequest
    inputs: VACEInputs
    host: Host
    reporter: Reporter
    meter: Meter
    attention: Attention
    cache: StepCache | None = None
    on_latents: Callable[[torch.Tensor], None] | None = None
    logged: set[str] | None = None
    high_steps: int | None = None
    embeds: list[torch.Tensor] = field(default_factory=list)
    control: torch.Tensor | None = None
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    halfway: SamplingState | None = None
    not_compiled: str | None = None

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return frames [N, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        if not self.embeds:
            self.embeds = self._encode(plan.phase("encode"))
        if self.control is None:
            self.control, self.colours = self._condition(plan.phase("condition"))
        # Each result is checked for on its own: after running out of memory only what is missing runs again.
        if self.latents is None:
            self.latents = self._sample(self._experts(plan))
            if self.on_latents is not None:
                self.on_latents(self.latents)
        return self._decode(plan.phase("decode"), self.latents)

    def non_finite_causes(self) -> list[str]:
        """Return what values that are no numbers may come from, see `execute_plan`."""
        causes = []
        if self.attention.name != SDPA:
            causes.append(f"the attention kernel {self.attention.name}: set attention to {SDPA}.")
        for name, value in (("cfg", self.request.largest_cfg), ("cfg_2", self.request.cfg_2)):
            if value > LARGE_CFG:
                causes.append(f"{name} {value:g}: set it below {LARGE_CFG}.")
        return causes

    def record(self) -> dict[str, Any]:
        """Return what the run did beside its plan, fit for JSON."""
        record: dict[str, Any] = {"attention": self.attention.name}
        if self.high_steps is not None:
            record["boundary"] = self.request.boundary or boundary_of(self.model.found)
            record["high_noise_steps"] = self.high_steps
        if self.cache is not None:
            record["steps_forecast"] = self.cache.skipped
        if self.not_compiled is not None:
            record["compiled"] = not self.not_compiled
        if self.not_compiled:
            record["not_compiled"] = self.not_compiled
        return record

    def _encode(self, choice: PhasePlan) -> list[torch.Tensor]:
        request = self.request
        # Without guidance the negative prompt is never read.
        reads_negative = request.reads_negative or (self.high_steps is not None and request.cfg_2 > 1)
        prompts = [request.prompt, request.negative_prompt] if reads_negative else [request.prompt]
        earlier = [request.earlier_prompt] if request.earlier_share else []
        with self.meter.phase(choice):
            embeds = encode_prompts(
                [*prompts, *earlier],
                self.model,
                choice,
                device=choice.on(self.meter.device),
                host=self.host,
                reporter=self.reporter,
                logged=self.logged,
            )
        if earlier:
            embeds[0] = embeds[0].lerp(embeds.pop(), request.earlier_share)
        return embeds

    def _condition(self, choice: PhasePlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the control [1, 2z + 64, T, h, w] and the preview's colours.

        Latents of a task that was seen before, with whatever prompt and seed, are not encoded again.
        """
        how = f"{choice.compute} {choice.storage} {choice.variant} {choice.placement} {self._device_kind}"
        tasks = TaskCache.open(self.host.cache_folder(), {"vae": self.model.parts.identity("vae"), "as": how})
        stored = tasks.get_or_encode(self.inputs, lambda: self._encode_task(choice, tasks))
        return append_mask(stored["latents"], self.inputs), stored["colours"]

    def _encode_task(self, choice: PhasePlan, tasks: TaskCache) -> Tensors:
        """Return the task's latents [1, 2z, T, h, w] and the preview's colours, on the CPU."""
        check = finite_check(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)

            def encode(video: torch.Tensor) -> torch.Tensor:
                latents = encode_video(vae, video)
                check(latents, "in the latents of the task")
                return latents.cpu()

            with placed(vae, choice, self.meter.device, self.host):
                progress = self.reporter.progress("Preparing the task", 1, seconds=choice.seconds)
                with tiling(vae, choice.variant == "tiled"):
                    latents = encode_task(tasks.cache_gray(encode), self.inputs)
                colours = fit_colours(vae)
                progress.step(1)
        return {"latents": latents, "colours": colours}

    def _experts(self, plan: Plan) -> list[Expert]:
        """Return what samples, in order, with its steps; an expert that has none is not in the plan."""
        steps, named = self.request.steps, {name: title for name, _, title in EXPERT_PHASES}
        choices = [choice for choice in plan.phases if choice.phase in named]
        if self.high_steps is None:
            return [Expert(choices[0], self.request, 0, steps)]
        requests = {"sample": self.request, "sample_2": self.request.of_second_expert()}
        ranges = {"sample": (0, self.high_steps), "sample_2": (self.high_steps, steps)}
        return [
            Expert(choice, requests[choice.phase], *ranges[choice.phase], title=named[choice.phase])
            for choice in choices
        ]

    def _sample(self, experts: list[Expert]) -> torch.Tensor:
        """Return the video's latents [1, z, T, h, w] on the CPU, those of an earlier run where it made the very same.

        They stay on disk until later runs push them out, so that a decode or a save that failed can be
        done again without sampling.
        """
        store = TensorCache(self.host.cache_folder() / "latents", MAX_CACHED_LATENTS)
        key = self._latents_key(experts)
        cached = store.get(key)
        if cached is not None:
            log.info("The latents of this video are kept from a run before: going on from them.")
            return cached["latents"]
        state = self.halfway or self._noise()
        for expert in (one for one in experts if state.done < one.end):
            choice = expert.choice
            with self.meter.phase(choice):
                transformer = self.model.transformer(choice)
                with (
                    placed(transformer, choice, self.meter.device, self.host, blocks=block_order(transformer)),
                    self.attention.enabled(choice.compute),
                ):
                    state = self._denoise_compiled(transformer, expert, state)
            # A second expert that runs out of memory does not have the first one begin again.
            self.halfway = state
        self.halfway = None
        # The latent frames of references stand in front and are no part of the video.
        latents = state.latents[:, :, len(self.inputs.references) :].clone()
        store.put(key, {"latents": latents})
        return latents

    def _latents_key(self, experts: list[Expert]) -> dict[str, Any]:
        assert self.control is not None
        before = self.inputs.before
        tensors = [self.control, *self.embeds, *([] if before is None else [before.latents, before.weights()])]
        steps, choices = self.request.steps, [expert.choice for expert in experts]
        return {
            "model": [self.model.parts.identity(part) for part in (*(one.component for one in choices), "scheduler")],
            "as": [
                f"{one.compute} {one.storage} {one.native_matmul} {one.variant} {self._device_kind}" for one in choices
            ],
            "ends": [expert.end for expert in experts],
            "attention": self.attention.name,
            # What the VAE computes in is in the control already, and decoding is not part of the latents.
            "request": asdict(replace(self.request, vae_precision=AUTO_VAE)),
            "scales": [self.inputs.scale_at(step, steps) for step in range(steps)],
            "tensors": digest(tensors),
        }

    @property
    def _device_kind(self) -> str:
        return self.meter.device.partition(":")[0]

    def _noise(self) -> SamplingState:
        """Return what sampling begins with."""
        import torch

        assert self.control is not None
        # On the CPU, so that one seed gives one video on every card.
        generator = torch.Generator("cpu").manual_seed(self.request.seed)
        # As many channels as the control has beside its mask's, which are the latents' own, twice.
        shape = (1, (self.control.shape[1] - VAE_STRIDE**2) // 2, *self.control.shape[2:])
        noise = torch.randn(shape, generator=generator)
        return SamplingState(noise, self.model.sampler(self.request, noise.device, generator))

    def _denoise_compiled(
        self, transformer: WanVACETransformer3DModel, expert: Expert, state: SamplingState
    ) -> SamplingState:
        """Return what `_denoise` gives, with compiled blocks where that is asked for and works here."""
        if not self.request.compile_blocks:
            return self._denoise(transformer, expert, state)
        self.not_compiled = reason_not_to_compile(expert.choice, self.meter.device)
        if not self.not_compiled and self.request.guidance.has_nag:
            self.not_compiled = "NAG changes what attention reads in every step"
        if self.not_compiled:
            log.info("compile_blocks is left out: %s.", self.not_compiled)
            return self._denoise(transformer, expert, state)
        from torch._dynamo.exc import TorchDynamoException

        try:
            with compiled_blocks(transformer):
                return self._denoise(transformer, expert, state)
        except TorchDynamoException as error:
            self.not_compiled = short_text(error)
            log.warning("Compiling the blocks failed (%s). They run as they are.", self.not_compiled)
        # Outside the handler: the exception's frames hold tensors of the failed attempt.
        return self._denoise(transformer, expert, state)

    def _denoise(self, transformer: WanVACETransformer3DModel, expert: Expert, state: SamplingState) -> SamplingState:
        """Return where sampling stands after an expert's steps; `state` is left as it is."""
        choice, request = expert.choice, expert.request
        assert self.control is not None and self.colours is not None
        dtype, device = torch_dtype(choice.compute), self.meter.device
        before, references = self.inputs.before, len(self.inputs.references)
        sampler = sampler_on(state.sampler, device)
        preview = LatentPreview(self.colours, skip=references)
        progress = self.reporter.progress(
            f"Sampling, {expert.title}" if expert.title else "Sampling",
            expert.end - expert.first,
            seconds=choice.seconds - choice.loading,
        )
        if self.cache is not None:
            # What one expert has predicted says nothing about the other.
            self.cache.reset(state.forecast)
        try:
            with nag_enabled(transformer, request.guidance) as nag:
                latents = denoise(
                    transformer,
                    sampler,
                    state.latents.to(device),
                    [states.to(device, dtype) for states in self.embeds],
                    control=self.control.to(device, dtype),
                    steps=request.steps,
                    cfg_at=request.cfg_at,
                    guidance=request.guidance,
                    nag=nag,
                    scale_at=self.inputs.scale_at,
                    on_step=step_report(progress, preview, finite_check(choice), request.steps, first=expert.first),
                    check_cancelled=self.reporter.check_cancelled,
                    cache=self.cache,
                    steer=None if before is None else before.steer(references),
                    batched=choice.variant == BATCHED,
                    first=expert.first,
                    end=expert.end,
                )
            forecast = 0 if self.cache is None else self.cache.skipped
            left = sampler_on(sampler, "cpu") if expert.end < request.steps else state.sampler
            return SamplingState(latents.cpu(), left, expert.end, forecast)
        finally:
            # After an error too: its tensors are on the card, where the next attempt needs the room.
            if self.cache is not None:
                self.cache.release()

    def _decode(self, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        tiled, check = choice.variant == "tiled", finite_check(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)
            with placed(vae, choice, self.meter.device, self.host):
                progress = self.reporter.progress(
                    "Decoding", decode_steps(vae, latents, tiled), seconds=choice.seconds
                )
                return decode(vae, latents, tiled=tiled, on_step=progress.step, check=check)
