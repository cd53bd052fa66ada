"""Hunyuan-DiT runs: a request → an image, under the best plan that holds; a finished phase is not run again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..catalog.installed_model import InstalledModel
from ..catalog.selection import ModelHandle
from ..executor.execute_plan import Meter, execute_plan
from ..executor.placement import placed, shown_blocks
from ..executor.retry import finite_check
from ..executor.tensor_cache import Encoded, encoded
from ..families.diffusion_model import ModelParts, phases_of_run, pipeline_of
from ..families.image_vae import decode_phase
from ..families.prompt_tokens import PromptTokenizer, encode_weighted
from ..files.dtypes import torch_dtype
from ..host.base import Host
from ..lora.catalog import record_of
from ..preview import LatentPreview, fit_colours, step_callback
from .phases import BERT_TOKENS, T5_TOKENS, ImageWork, fitting, what_fits
from .request import ImageRequest, check_size

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    from ..families.shared_calls import CallSharing
    from ..parallel.cards import Cards, Way
    from ..planner.phases import Component
    from ..planner.plan_types import PhasePlan, Plan

log = logging.getLogger("piying")


class Encoder(NamedTuple):
    """One of the text encoders, as HunyuanDiTPipeline numbers them."""

    number: int
    part: str
    phase: str
    tokens: int
    suffix: str  # of the pipeline's arguments
    title: str

    @property
    def tokenizer(self) -> str:
        """The part that is its tokenizer."""
        return f"tokenizer{self.suffix}"


ENCODERS = (
    Encoder(0, "text_encoder", "encode", BERT_TOKENS, "", "The first text encoder (BERT)"),
    Encoder(1, "text_encoder_2", "encode_2", T5_TOKENS, "_2", "The second text encoder (mT5)"),
)


def sample(handle: ModelHandle, request: ImageRequest, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one image.

    The result equals `HunyuanDiTPipeline.__call__` on the same weights with
    `use_resolution_binning=False` and a CPU generator seeded with `seed`.

    Returns:
        A float32 CPU tensor [1, height, width, 3] in 0..1, and a record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the model or the device cannot be used, or no plan fits the machine;
            the text says why.
    """
    import torch

    model = load_model(handle, host)
    check_size(request.width, request.height, model.found.is_built_in)
    components = model.components()
    steps, work, cards = phases_of_run(handle, host, components=components, work=ImageWork.of(request))
    run = ImageRun(model, request, host, Meter(host.device()), work.split.way, cards)
    for sentence in handle.family.cautions(model.found.name, work):
        log.warning("%s", sentence)
    with torch.no_grad():
        image, ran = execute_plan(
            steps,
            handle,
            host,
            run,
            what_fits=lambda machine: what_fits(fitting(components, machine, handle, work)),
        )
    return image, {"model": model.found.name, **record_of(model.parts.loras), **ran, **asdict(request)} | run.record()


@dataclass
class ImageRun:
    """One run: a request and what its finished phases left. `attempt` may be called again after running out of memory.

    Attributes:
        shared_by: how its predictions are shared with other ranks.
        cards: those that they run on; None for one.
        texts: for each encoder what it made of the prompt and, with guidance, of the negative prompt.
        colours: the preview's map from latent channels to colour.
        latents: [1, 4, h, w] on the CPU, once sampled.
    """

    model: HunyuanDiTModel
    request: ImageRequest
    host: Host
    meter: Meter
    shared_by: Way = "off"
    cards: Cards | None = None
    texts: dict[str, list[Encoded]] = field(default_factory=dict)
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return the image [1, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        for encoder in ENCODERS:
            if encoder.part not in self.texts:
                self.texts[encoder.part] = self._encode(encoder, plan.phase(encoder.phase))
        if self.latents is None:
            self.latents = self._sample(plan.phase("sample"), plan.phase("decode"))
        return decode_phase(self.model.parts, plan.phase("decode"), self.meter, self.latents)

    def _encode(self, encoder: Encoder, choice: PhasePlan) -> list[Encoded]:
        import torch

        request, device = self.request, choice.on(self.meter.device)
        prompts = [request.prompt, request.negative_prompt] if request.cfg > 1 else [request.prompt]
        progress = self.host.progress("Encoding prompt", len(prompts), seconds=choice.seconds)

        def encode_one(pipeline: HunyuanDiTPipeline, text: str) -> Encoded:
            self.host.check_cancelled()
            states, _, mask, _ = pipeline.encode_prompt(
                text,
                do_classifier_free_guidance=False,
                max_sequence_length=encoder.tokens,
                text_encoder_index=encoder.number,
                device=torch.device(device),
                dtype=getattr(pipeline, encoder.part).dtype,
            )
            return {"states": states.cpu(), "mask": mask.cpu()}

        def encode(new: list[str]) -> list[Encoded]:
            pipeline = self.model.encoder_pipeline(encoder, choice)
            model, tokenizer = getattr(pipeline, encoder.part), getattr(pipeline, encoder.tokenizer)
            # BERT's blocks, or T5's.
            blocks = list(model.encoder.block if hasattr(model.encoder, "block") else model.encoder.layer)
            with (
                placed(model, choice, device, self.host, blocks=blocks),
                shown_blocks(blocks, self.host, encoder.part.replace("_", " ").capitalize(), len(new)),
            ):
                return [encode_weighted(text, tokenizer, partial(encode_one, pipeline)) for text in new]

        with self.meter.phase(choice):
            found = encoded(prompts, self.model.parts.identity(encoder.part), choice, self.host, encode=encode)
        progress.step(len(prompts))
        return found

    def _prompt_arguments(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the embedding and mask arguments that HunyuanDiTPipeline takes in place of a prompt."""
        arguments = {}
        for encoder in ENCODERS:
            for which, text in zip(("", "negative_"), self.texts[encoder.part], strict=False):
                arguments[f"{which}prompt_embeds{encoder.suffix}"] = text["states"].to(self.meter.device, dtype)
                arguments[f"{which}prompt_attention_mask{encoder.suffix}"] = text["mask"].to(self.meter.device)
        return arguments

    def _sample(self, choice: PhasePlan, decode: PhasePlan) -> torch.Tensor:
        """Return latents [1, 4, height / 8, width / 8]."""
        import torch

        with self._shared(choice) as sharing, self.meter.phase(choice):
            if self.colours is None:
                # In host memory: a second of work there is cheaper than the VAE's way to the card.
                self.colours = fit_colours(self.model.vae(decode))
            sampler = self.model.sampler(choice)
            transformer, group = sampler.transformer, None if sharing is None else sharing.group
            blocks = list(transformer.blocks)
            progress = self.host.progress("Sampling", self.request.steps, seconds=choice.seconds - choice.loading)
            preview = LatentPreview(self.colours, sampler.scheduler)
            with (
                placed(transformer, choice, self.meter.device, self.host, blocks=blocks, group=group),
                nullcontext() if sharing is None else sharing.calls(transformer),
            ):
                latents: torch.Tensor = sampler(
                    **self._prompt_arguments(torch_dtype(choice.compute)),
                    width=self.request.width,
                    height=self.request.height,
                    num_inference_steps=self.request.steps,
                    guidance_scale=self.request.cfg,
                    # On the CPU, so that one seed gives one image on every card.
                    generator=torch.Generator("cpu").manual_seed(self.request.seed),
                    use_resolution_binning=False,
                    callback_on_step_end=step_callback(progress, preview, finite_check(choice), self.request.steps),
                    output_type="latent",
                ).images
            return latents.cpu()

    def _shared(self, choice: PhasePlan) -> AbstractContextManager[CallSharing | None]:
        """Have the other ranks at hand while it samples, where the predictions are shared with them."""
        if self.cards is None:
            return nullcontext()
        # Not at the top: one process alone does without them.
        from ..families.shared_calls import calls_shared
        from ..parallel.local_ranks import group_of
        from .shared_sampling import HunyuanDiTJob

        group = group_of(self.cards, self.host)
        return calls_shared(HunyuanDiTJob, self.model.parts, choice, self.shared_by, group=group)

    def record(self) -> dict[str, Any]:
        """Return what the run did beside its plan, fit for JSON."""
        return {} if self.shared_by == "off" else {"shared": self.shared_by}


@dataclass(frozen=True)
class HunyuanDiTModel:
    """One installed model, by its parts."""

    parts: ModelParts

    @property
    def found(self) -> InstalledModel:
        """Where it is."""
        return self.parts.found

    def components(self) -> Mapping[str, Component]:
        """Return the sizes of its parts, read from the headers of its files."""
        return self.parts.components()

    def encoder_pipeline(self, encoder: Encoder, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of one text encoder and its tokenizer, which reads weights; `choice` is of its phase."""
        from ..checkpoints.tokenizers import tokenizer_of

        tokenizer = PromptTokenizer(tokenizer_of(self.found, encoder.tokenizer), encoder.tokens, encoder.title)
        return self._pipeline(**{encoder.part: self.parts.load(encoder.part, choice), encoder.tokenizer: tokenizer})

    def sampler(self, choice: PhasePlan) -> HunyuanDiTPipeline:
        """Return a pipeline of the transformer and a fresh scheduler alone."""
        transformer: HunyuanDiT2DModel = self.parts.load("transformer", choice)
        in_files = bool(self.found.parts)
        scheduler = scheduler_of(transformer) if in_files else self._scheduler()
        return self._pipeline(transformer=transformer, scheduler=scheduler)

    def vae(self, choice: PhasePlan) -> AutoencoderKL:
        """Return the VAE in host memory."""
        vae: AutoencoderKL = self.parts.load("vae", choice)
        return vae

    def _pipeline(self, **parts: Any) -> HunyuanDiTPipeline:
        from diffusers import HunyuanDiTPipeline

        return pipeline_of(HunyuanDiTPipeline, **parts, requires_safety_checker=False)

    def _scheduler(self) -> Any:
        """Return the folder's own: v1.1 and the distilled models differ."""
        import diffusers

        index: Any = diffusers.HunyuanDiTPipeline.load_config(self.found.path, local_files_only=True)
        kind = getattr(diffusers, index["scheduler"][1])
        return kind.from_pretrained(self.found.path / "scheduler", local_files_only=True)


def scheduler_of(transformer: HunyuanDiT2DModel) -> DDPMScheduler:
    """Return the noise schedule of a transformer without a folder: v1.1 knows its style condition, v1.2 has none.

    Values: SAMPLER_FACTORY in hydit/constants.py of Tencent-Hunyuan/HunyuanDiT; the ends are those of ComfyUI's
    comfy/supported_models.py (HunyuanDiT, HunyuanDiT1).
    """
    from diffusers import DDPMScheduler

    old = transformer.config["use_style_cond_and_image_meta_size"]
    scheduler: DDPMScheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.03 if old else 0.018,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )
    return scheduler


def load_model(handle: ModelHandle, host: Host) -> HunyuanDiTModel:
    """Return the model a handle stands for; nothing is read yet.

    Raises:
        PiyingError: the model or a LoRA is not installed.
    """
    return HunyuanDiTModel(ModelParts.of(handle, host))
