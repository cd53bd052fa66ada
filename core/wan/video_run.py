"""Runs of Wan: a request → frames, under the best plan that holds; a finished phase is not run again."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import short_text
from ..executor.execute_plan import Meter, execute_plan
from ..executor.placement import placed
from ..executor.retry import finite_check
from ..executor.tensor_cache import TensorCache, digest
from ..families.diffusion_model import phases_of_run
from ..files.dtypes import torch_dtype
from ..host.base import Host, Reporter
from ..lora.catalog import lora_notes, record_of
from ..preview import LatentPreview, fit_colours, step_report
from .attention import Attention, attention_for
from .conditioning import Encode, encode_prompts, encode_video
from .context import LOOP_LEAD, free_noise, riflex_enabled
from .decode import decode, decode_steps, tiling
from .denoise import denoise
from .experts import EXPERT_PHASES, SamplingState, boundary_of, has_two_experts, sampler_on, shared_steps
from .fast_decoder import FastDecoders, decoders_of, reads_scale_of_vae
from .latent_scale import denormalised
from .latents import STRIDE, video_frames
from .model import WanModel, check_settings, warn_if_not_made_for, with_published_sampler
from .nag import nag_enabled
from .phases import BATCHED, FastDecoding, VideoWork, fitting, what_fits
from .request import AUTO_VAE, SDPA, WanRequest
from .schedule import check_step_range, schedule_notes
from .speed import speed_notes, with_speed
from .start_latents import StartLatents, as_latent
from .step_cache import StepCache
from .transformer import block_order, compiled_blocks, reason_not_to_compile

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..catalog.selection import ModelHandle
    from ..parallel.cards import Cards, Way
    from ..planner.phases import Phase
    from ..planner.plan_types import PhasePlan, Plan
    from .shared_sampling import VideoSharing
    from .transformer import Transformer

log = logging.getLogger("piying")

Run = TypeVar("Run", bound="VideoRun")
Made = TypeVar("Made")

LARGE_CFG = 20  # far above what the models are published with
MAX_CACHED_LATENTS = 4  # videos whose latents outlive the run, 20 MB each at 720p


def log_request(handle: ModelHandle, asked: WanRequest, request: WanRequest, model: WanModel) -> None:
    """Name what of a request is changed, is without effect, or is not what the model was made for.

    Args:
        asked: as the user made it.
        request: as it runs.
    """
    for sentence in speed_notes(asked, request):
        log.info("Speed: %s", sentence)
    for sentence in schedule_notes(asked):
        log.info("Schedule: %s", sentence)
    for sentence in handle.family.cautions(model.found.name, request, model.found):
        log.warning("%s", sentence)
    if model.found.caution:
        log.warning("%s", model.found.caution)
    warn_if_not_made_for(request, model.parts.loras)
    for sentence in expert_notes(request, model):
        log.info("%s", sentence)


def execute(
    run: VideoRun, handle: ModelHandle, steps: tuple[Phase, ...], work: VideoWork
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the frames of a run, and a record of what it did.

    Args:
        steps: its phases.
        work: what they were made from.

    Raises:
        PiyingError: the model or the device cannot be used, or no plan fits the machine.
    """
    import torch

    components, model, host = run.model.components(), run.model, run.host
    steps, work, run.cards = phases_of_run(handle, host, components=components, work=work)
    run.shared_by = work.split.way
    with torch.no_grad():
        frames, ran = execute_plan(
            steps,
            handle,
            host,
            run,
            what_fits=lambda machine: what_fits(fitting(components, machine, handle, work), work),
            logged_plans=run.logged,
            causes=run.non_finite_causes(),
        )
    if run.cache is not None and run.cache.skipped:
        log.info("Speed: %d of %d steps were forecast.", run.cache.skipped, run.request.steps)
    record = {"model": model.found.name, **record_of(model.parts.loras), **ran, **asdict(run.request)}
    return frames, record | run.record()


def expert_notes(request: WanRequest, model: WanModel) -> list[str]:
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
        steps: those that it takes, from 0.
        title: which of two it is; "" where there is one.
    """

    choice: PhasePlan
    request: WanRequest
    steps: range
    title: str = ""


@dataclass
class VideoRun(ABC):
    """One run: a request and what its finished phases left. `attempt` may be called again after running out of memory.

    Attributes:
        reporter: shown the phases' progress; it may be one window of a long video.
        attention: which kernel computes it.
        cache: forecasts steps that hardly differ; None computes every one.
        start: what sampling begins from in place of noise alone.
        on_latents: called with the video's latents [1, z, T, h, w] before they are decoded.
        logged: what was logged for videos much like this one.
        high_steps: how many steps the first of two experts has; None where there is one transformer.
        decoders: the files of what decodes in place of the VAE.
        embeds, latents: results of finished phases, on the CPU.
        halfway: what the first of two experts has left.
        unfinished: latents [1, z, R + T, h, w] where steps are left to another sampler; `latents` are then what the
            last step took for clean ones.
        colours: the preview's map from latent channels to colour.
        shared_by: how its predictions are shared with other ranks.
        cards: those that they run on; None for one.
        sharing: what asks those for their part, while they are.
        not_compiled: why blocks were not compiled though that was asked for; "" where they were, and None where it
            was not asked for or nothing was sampled.
    """

    model: WanModel
    request: WanRequest
    host: Host
    reporter: Reporter
    meter: Meter
    attention: Attention
    cache: StepCache | None = None
    start: StartLatents | None = None
    on_latents: Callable[[torch.Tensor], None] | None = None
    logged: set[str] | None = None
    high_steps: int | None = None
    decoders: FastDecoders = field(default_factory=FastDecoders)
    embeds: list[torch.Tensor] = field(default_factory=list)
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    halfway: SamplingState | None = None
    unfinished: torch.Tensor | None = None
    shared_by: Way = "off"
    cards: Cards | None = None
    sharing: VideoSharing | None = None
    not_compiled: str | None = None

    @classmethod
    def of(
        cls: type[Run],
        handle: ModelHandle,
        asked: WanRequest,
        model: WanModel,
        host: Host,
        *,
        reporter: Reporter | None = None,
        logged: set[str] | None = None,
        latent: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> Run:
        """Return the run of a request that is checked for its model; what of it is changed or in vain is logged.

        Args:
            asked: as the user made it.
            reporter: shown the phases' progress in place of the host.
            logged: see the class; where there is anything in it, the request is not logged again.
            latent: ComfyUI's LATENT to begin from.
            given: what the class has beside that.

        Raises:
            PiyingError: the model cannot be used so.
        """
        decoders, device = decoders_of(handle, host), host.device()
        check_settings(model.found, asked.guidance, asked.context, decoders)
        check_step_range(asked, latent is not None)
        request = with_published_sampler(with_speed(asked), model.parts.loras)
        start = None if latent is None else StartLatents.of(latent, request, model)
        if start is not None:
            start.check_level(model.levels(request), request.start_at_step)
        # A long video says once what is true of all its windows.
        if not logged:
            log_request(handle, asked, request, model)
        return cls(
            model,
            request,
            host,
            reporter=reporter or host,
            meter=Meter(device),
            attention=attention_for(request.attention, request.speed, device, model.found.is_built_in),
            cache=StepCache(request.step_cache) if request.step_cache else None,
            start=start,
            logged=logged,
            high_steps=model.experts(request),
            decoders=decoders,
            **given,
        )

    @property
    def planned(self) -> dict[str, Any]:
        """What `VideoWork.of` is told beside the request."""
        return {
            "notes": (self.attention.why,),
            "high_steps": self.high_steps,
            "fast": FastDecoding(self.decoders.result is not None, self.decoders.previews is not None),
        }

    @abstractmethod
    def prepare(self, plan: Plan) -> None:
        """Encode what the video is made from beside its prompt, and find the preview's colours, where not done yet."""

    @abstractmethod
    def latents_shape(self) -> tuple[int, ...]:
        """Return the shape of the latents that are sampled."""

    @abstractmethod
    def given(self, device: str, dtype: torch.dtype) -> dict[str, Any]:
        """Return what `denoise` is given of what the video is made from."""

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that the latents depend on beside the prompts' embeddings."""

    def key(self) -> dict[str, Any]:
        """Return what else they depend on, fit for JSON."""
        return {}

    def front(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the latent frames that stand in front of the video and are no part of it, [1, z, R, h, w]."""
        return noise[:, :, :0]

    @property
    def in_front(self) -> int:
        """How many of them there are."""
        return 0

    @property
    def stride(self) -> int:
        """How many pixels of a side a latent pixel stands for."""
        return STRIDE

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the video's latents as they are decoded, from those that were sampled."""
        return latents

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return frames [N, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        # Each result is checked for on its own: after running out of memory only what is missing runs again.
        if not self.embeds:
            self.embeds = self._encode(plan.phase("encode"))
        self.prepare(plan)
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

    def latent(self) -> dict[str, Any]:
        """Return ComfyUI's LATENT of the video, for another sampler or VAE Decode."""
        config, latents = self.model.vae_config, self.unfinished
        if latents is None:
            assert self.latents is not None
            return as_latent(config, self.latents)
        level = self.model.levels(self.request)[self.request.taken.stop]
        return as_latent(config, latents[:, :, self.in_front :], level, latents[:, :, : self.in_front])

    def record(self) -> dict[str, Any]:
        """Return what the run did beside its plan, fit for JSON."""
        record: dict[str, Any] = {"attention": self.attention.name}
        if self.start is not None:
            record["latents_noise_level"] = self.start.level
        if self.high_steps is not None:
            record["boundary"] = self.request.boundary or boundary_of(self.model.found, self.model.boundary)
            record["high_noise_steps"] = self.high_steps
        if self.cache is not None:
            record["steps_forecast"] = self.cache.skipped
        if self.decoders.result is not None:
            record["decoder"] = self.decoders.result.name
        if self.shared_by != "off":
            record["shared"] = self.shared_by
        if self.not_compiled is not None:
            record["compiled"] = not self.not_compiled
        if self.not_compiled:
            record["not_compiled"] = self.not_compiled
        return record

    def way(self, choice: PhasePlan) -> str:
        """Return how a phase of the VAE runs, as far as the last bits of what it encodes depend on it."""
        return f"{choice.compute} {choice.storage} {choice.variant} {choice.placement} {self.device_kind}"

    def encode_by_vae(
        self, choice: PhasePlan, title: str, what: str, make: Callable[[Encode], Made]
    ) -> tuple[Made, torch.Tensor]:
        """Return what is made with the VAE's encoder, and the preview's colours, on the CPU.

        Args:
            title: of the phase, for people.
            what: is encoded, for errors.
            make: called with what encodes a video.
        """
        check = finite_check(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)

            def encode(video: torch.Tensor) -> torch.Tensor:
                latents = encode_video(vae, video)
                check(latents, f"in the latents of {what}")
                return latents.cpu()

            with placed(vae, choice, self.meter.device, self.host):
                progress = self.reporter.progress(title, 1, seconds=choice.seconds)
                with tiling(vae, choice.variant == "tiled"):
                    made = make(encode)
                colours = fit_colours(vae)
                progress.step(1)
        return made, colours

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

    def _experts(self, plan: Plan) -> list[Expert]:
        """Return what samples, in order, with its steps; an expert that has none is not in the plan."""
        taken, named = self.request.taken, {name: title for name, _, title in EXPERT_PHASES}
        choices = [choice for choice in plan.phases if choice.phase in named]
        if self.high_steps is None:
            return [Expert(choices[0], self.request, taken)]
        requests = {"sample": self.request, "sample_2": self.request.of_second_expert()}
        own = dict(zip(requests, shared_steps(taken, self.high_steps), strict=True))
        return [
            Expert(choice, requests[choice.phase], own[choice.phase], title=named[choice.phase]) for choice in choices
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
            self.unfinished = cached.get("unfinished")
            return cached["latents"]
        state = self.halfway or self._begin()
        for expert in (one for one in experts if state.done < one.steps.stop):
            choice = expert.choice
            with self._shared(expert, state) as self.sharing, self.meter.phase(choice):
                transformer = self.model.transformer(choice)
                blocks, group = block_order(transformer), None if self.sharing is None else self.sharing.group
                with (
                    placed(transformer, choice, self.meter.device, self.host, blocks=blocks, group=group),
                    self.attention.enabled(choice.compute),
                ):
                    state = self._denoise_compiled(transformer, expert, state)
            # A second expert that runs out of memory does not have the first one begin again.
            self.halfway = state
        self.halfway = None
        self.unfinished = state.latents if state.clean is not None else None
        made = state.latents if state.clean is None else state.clean
        latents = self.result(made[:, :, self.in_front :].clone())
        store.put(key, {"latents": latents} | ({} if self.unfinished is None else {"unfinished": self.unfinished}))
        return latents

    @contextmanager
    def _shared(self, expert: Expert, state: SamplingState) -> Iterator[VideoSharing | None]:
        """Have the other ranks at hand for an expert's steps, where its predictions are shared with them."""
        if self.cards is None:
            yield None
            return
        # Not at the top: one process alone does without them.
        from ..families.shared_sampling import shared_sampling
        from ..parallel.local_ranks import group_of
        from .shared_sampling import VideoJob, VideoSharing

        request = expert.request
        job = VideoJob.of(
            self.model.parts,
            expert.choice,
            self.shared_by,
            attention=self.attention,
            guidance=request.guidance,
            context=request.context,
            frames=state.latents.shape[2] - self.in_front,
            forecast_below=None if self.cache is None else self.cache.threshold,
        )
        with shared_sampling(VideoSharing(group_of(self.cards, self.host), way=job.way), job) as sharing:
            yield sharing

    def _latents_key(self, experts: list[Expert]) -> dict[str, Any]:
        choices = [expert.choice for expert in experts]
        return {
            "model": [self.model.parts.identity(part) for part in (*(one.component for one in choices), "scheduler")],
            "as": [
                f"{one.compute} {one.storage} {one.native_matmul} {one.variant} {self.device_kind}" for one in choices
            ],
            "ends": [expert.steps.stop for expert in experts],
            "attention": self.attention.name,
            # What the VAE computes in is in what it has encoded, and decoding is not part of the latents.
            "request": asdict(replace(self.request, vae_precision=AUTO_VAE)),
            "tensors": digest([*self.embeds, *self.tensors()]),
            "start": [] if self.start is None else [self.start.level, digest(self.start.tensors())],
            **self.key(),
            # By prompts, a video has the bits that it has on one card.
            **({"cards": self.cards.count} if self.cards is not None and self.shared_by == "sequence" else {}),
        }

    @property
    def device_kind(self) -> str:
        """The kind of device that it computes on: "cuda", "cpu"."""
        return self.meter.device.partition(":")[0]

    def _begin(self) -> SamplingState:
        """Return what sampling begins with."""
        import torch

        # On the CPU, so that one seed gives one video on every card.
        generator = torch.Generator("cpu").manual_seed(self.request.seed)
        noise, context = torch.randn(self.latents_shape(), generator=generator), self.request.context
        if context.free_noise:
            noise = free_noise(noise, context, generator, self.in_front)
        sampler, first = self.model.sampler(self.request, noise.device, generator), self.request.start_at_step
        if first:
            sampler.begin_at(first, noise.shape)
        if self.start is not None:
            noise = self.start.at(float(sampler.scheduler.sigmas[first]), noise, self.front(noise))
        return SamplingState(noise, sampler, first)

    def _denoise_compiled(self, transformer: Transformer, expert: Expert, state: SamplingState) -> SamplingState:
        """Return what `_denoise` gives, with compiled blocks where that is asked for and works here."""
        if not self.request.compile_blocks:
            return self._denoise(transformer, expert, state)
        self.not_compiled = reason_not_to_compile(expert.choice, self.meter.device)
        if not self.not_compiled and self.sharing is not None:
            self.not_compiled = "ranks that share a step are to compute alike"
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

    def _denoise(self, transformer: Transformer, expert: Expert, state: SamplingState) -> SamplingState:
        """Return where sampling stands after an expert's steps; `state` is left as it is."""
        choice, request, context = expert.choice, expert.request, expert.request.context
        first, end = expert.steps.start, expert.steps.stop
        dtype, device = torch_dtype(choice.compute), self.meter.device
        sampler = sampler_on(state.sampler, device)
        preview = self._preview(choice)
        progress = self.reporter.progress(
            f"Sampling, {expert.title}" if expert.title else "Sampling",
            len(expert.steps),
            seconds=choice.seconds - choice.loading,
        )
        report = step_report(progress, preview, finite_check(choice), request.steps, first=first)
        last_clean: torch.Tensor | None = None

        def on_step(done: int, latents: torch.Tensor, clean: torch.Tensor) -> None:
            nonlocal last_clean
            report(done, latents, clean)
            if done == request.taken.stop < request.steps:
                last_clean = clean.cpu()

        if self.cache is not None:
            # What one expert has predicted says nothing about the other.
            self.cache.reset(state.forecast)
        try:
            frames = state.latents.shape[2] - self.in_front
            with nag_enabled(transformer, request.guidance) as nag, riflex_enabled(transformer, context, frames):
                latents = denoise(
                    transformer,
                    sampler,
                    state.latents.to(device),
                    [states.to(device, dtype) for states in self.embeds],
                    steps=request.steps,
                    cfg_at=request.cfg_at,
                    guidance=request.guidance,
                    nag=nag,
                    context=context,
                    in_front=self.in_front,
                    on_step=on_step,
                    check_cancelled=self.reporter.check_cancelled,
                    cache=self.cache,
                    batched=choice.variant == BATCHED,
                    first=first,
                    end=end,
                    share=None if self.sharing is None else self.sharing.begin,
                    **self.given(device, dtype),
                )
            forecast = 0 if self.cache is None else self.cache.skipped
            left = sampler_on(sampler, "cpu") if end < request.steps else state.sampler
            return SamplingState(latents.cpu(), left, end, forecast, last_clean)
        finally:
            # After an error too: their tensors are on the card, where the next attempt needs the room.
            preview.release()
            if self.sharing is not None:
                self.sharing.end()
            if self.cache is not None:
                self.cache.release()

    def _preview(self, choice: PhasePlan) -> LatentPreview:
        """Return what makes the previews of the steps."""
        assert self.colours is not None
        linear = LatentPreview(self.colours, skip=self.in_front, stride=self.stride)
        decoder = self.decoders.previews
        if decoder is None:
            return linear
        from .fast_preview import FastPreview
        from .taehv import cached_taehv

        dtype = torch_dtype(choice.compute)
        return FastPreview(
            linear,
            lambda: cached_taehv(decoder, dtype, self.host),
            self.meter.device,
            lambda latents: self._scaled_for(decoder, latents),
        )

    def _scaled_for(self, decoder: Path, latents: torch.Tensor) -> torch.Tensor:
        """Return latents in the scale that a fast decoder reads."""
        if not reads_scale_of_vae(decoder):
            return latents
        return denormalised(self.model.vae_config, latents)

    def _decode(self, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        """Return the frames of latents; of a loop four for each of them, the first of which follow from the last."""
        import torch

        if not self.request.context.loop:
            return self._frames(choice, latents)
        # The decoder makes one frame of the first latent frame that it is given, and others of those after it.
        lead = latents[:, :, -LOOP_LEAD:]
        frames = self._frames(choice, torch.cat([lead, latents], dim=2))
        return frames[video_frames(lead.shape[2]) :]

    def _frames(self, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        if self.decoders.result is not None:
            return self._decode_fast(self.decoders.result, choice, latents)
        tiled, check = choice.variant == "tiled", finite_check(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)
            with placed(vae, choice, self.meter.device, self.host):
                progress = self.reporter.progress(
                    "Decoding", decode_steps(vae, latents, tiled), seconds=choice.seconds
                )
                return decode(vae, latents, tiled=tiled, on_step=progress.step, check=check)

    def _decode_fast(self, decoder: Path, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        from .taehv import cached_taehv, decode_fast

        latents = self._scaled_for(decoder, latents)
        with self.meter.phase(choice):
            network = cached_taehv(decoder, torch_dtype(choice.compute), self.host)
            with placed(network, choice, self.meter.device, self.host):
                total = video_frames(latents.shape[2])
                progress = self.reporter.progress("Decoding", total, seconds=choice.seconds)
                return decode_fast(network, latents, on_step=progress.step, check=finite_check(choice))
