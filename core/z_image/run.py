"""Runs of Z-Image: a request, and a picture where there is one, to an image under a memory plan."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..catalog.selection import ModelHandle
from ..errors import PiyingError
from ..executor.execute_plan import Meter, execute_plan
from ..executor.placement import placed, shown_blocks
from ..executor.retry import finite_check
from ..executor.tensor_cache import Encoded, encoded
from ..families.diffusion_model import ModelParts, phases_of_run, pipeline_of
from ..families.image_vae import decode_phase, set_tiling
from ..families.prompt_tokens import PromptTokenizer, encode_weighted
from ..files.dtypes import torch_dtype
from ..host.base import Host
from ..image_sizes import fit_frames
from ..lora.catalog import record_of
from ..media.frames import check_finite
from ..preview import FlowPreview, fit_colours, step_callback
from .blocks import block_order, forget_angles
from .phases import TEXT_TOKENS, ZImageWork, fitting, what_fits
from .request import ZImageRequest, check_side, check_strength

if TYPE_CHECKING:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from ..families.shared_calls import CallSharing
    from ..parallel.cards import Cards, Way
    from ..planner.plan_types import PhasePlan, Plan

# What Qwen3's own template makes of one message; the tokenizer that ComfyUI comes with is that of Qwen2.5, whose
# template adds a system prompt that the model was not trained with.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = "enable_thinking"  # in the templates of Qwen3

log = logging.getLogger("piying")


def sample(
    handle: ModelHandle, request: ZImageRequest, host: Host, image: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Make one image.

    The result equals that of `ZImagePipeline`, or of `ZImageImg2ImgPipeline` where there is a picture, on the same
    weights with `guidance_scale=cfg - 1`, a scheduler of the same shift and a CPU generator seeded with `seed`.

    Args:
        image: for image to image, float [N, H, W, 3 or 4] in 0..1, of which the first is taken; it is brought
            to the request's size.

    Returns:
        A float32 CPU tensor [1, height, width, 3] in 0..1, and a record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the picture, the model or the device cannot be used, or no plan fits the machine.
    """
    import torch

    check_side("width", request.width)
    check_side("height", request.height)
    picture = None if image is None else _picture(image, request)
    parts = ModelParts.of(handle, host)
    components, work = parts.components(), ZImageWork.of(request, picture is not None)
    steps, work, cards = phases_of_run(handle, host, components=components, work=work)
    run = ZImageRun(parts, request, host, Meter(host.device()), picture, work.split.way, cards)
    for sentence in handle.family.cautions(parts.found.name, work):
        log.warning("%s", sentence)
    with torch.no_grad():
        made, ran = execute_plan(
            steps,
            handle,
            host,
            run,
            what_fits=lambda machine: what_fits(fitting(components, machine, handle, work)),
        )
    return made, {"model": parts.found.name, **record_of(parts.loras), **ran, **asdict(request)} | run.record()


def _picture(image: torch.Tensor, request: ZImageRequest) -> torch.Tensor:
    """Return the first picture of a batch as [1, 3, height, width] in -1..1, cut to the request's shape and scaled."""
    check_strength(request.strength)
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise PiyingError(
            f"image has the shape {list(image.shape)}. Connect an IMAGE of at least one frame: "
            "[frames, height, width, 3]."
        )
    check_finite(image[:1], "image")
    pixels = fit_frames(image[:1, :, :, :3].float().cpu(), request.width, request.height, "crop").permute(0, 3, 1, 2)
    return pixels.clamp(0, 1) * 2 - 1


@dataclass
class ZImageRun:
    """One run: a request and what its finished phases left. `attempt` may be called again after running out of memory.

    Attributes:
        picture: of image to image, [1, 3, H, W] in -1..1, or None.
        shared_by: how its predictions are shared with other ranks.
        cards: those that they run on; None for one.
        texts: what the encoder made of the prompt and, with guidance, of the negative prompt: [tokens, width].
        begun: latents of the picture and the noise that goes over them, [1, 16, h, w] each.
        colours: the preview's map from latent channels to colour.
        latents: [1, 16, h, w] on the CPU, once sampled.
    """

    parts: ModelParts
    request: ZImageRequest
    host: Host
    meter: Meter
    picture: torch.Tensor | None = None
    shared_by: Way = "off"
    cards: Cards | None = None
    texts: list[Encoded] = field(default_factory=list)
    begun: tuple[torch.Tensor, torch.Tensor] | None = None
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return the image [1, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        if not self.texts:
            self.texts = self._encode(plan.phase("encode"))
        if self.picture is not None and self.begun is None:
            dtype = torch_dtype(plan.phase("encode").compute)
            self.begun = self._condition(plan.phase("condition"), self.picture, dtype)
        if self.latents is None:
            self.latents = self._sample(plan.phase("sample"), plan.phase("decode"))
        return decode_phase(self.parts, plan.phase("decode"), self.meter, self.latents)

    def _encode(self, choice: PhasePlan) -> list[Encoded]:
        import torch
        from diffusers import ZImagePipeline

        from ..checkpoints.tokenizers import tokenizer_of

        request, device = self.request, choice.on(self.meter.device)
        prompts = [request.prompt, request.negative_prompt] if request.cfg > 1 else [request.prompt]
        progress = self.host.progress("Encoding prompt", len(prompts), seconds=choice.seconds)

        def encode(new: list[str]) -> list[Encoded]:
            tokenizer = tokenizer_of(self.parts.found)
            if THINKING not in str(tokenizer.chat_template):
                tokenizer.chat_template = TEMPLATE
            # A chat goes through it, whose tokens depend on each other: ComfyUI leaves its weights out as well.
            tokenizer = PromptTokenizer(tokenizer, TEXT_TOKENS, "The text encoder", weighted=False)
            encoder = self.parts.load("text_encoder", choice)
            pipeline = pipeline_of(ZImagePipeline, text_encoder=encoder, tokenizer=tokenizer)

            def encode_one(text: str) -> Encoded:
                self.host.check_cancelled()
                (embedded,), _ = pipeline.encode_prompt(
                    text,
                    device=torch.device(device),
                    do_classifier_free_guidance=False,
                    max_sequence_length=TEXT_TOKENS,
                )
                return {"states": embedded.cpu()}

            blocks = list(encoder.layers)
            with (
                placed(encoder, choice, device, self.host, blocks=blocks),
                shown_blocks(blocks, self.host, "Text encoder", len(new)),
            ):
                return [encode_weighted(text, tokenizer, encode_one) for text in new]

        with self.meter.phase(choice):
            found = encoded(prompts, self.parts.identity("text_encoder"), choice, self.host, encode=encode)
        progress.step(len(prompts))
        return found

    def _condition(
        self, choice: PhasePlan, picture: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents of the picture and the noise over them, drawn as ZImageImg2ImgPipeline draws both."""
        import torch

        progress = self.host.progress("Preparing the task", 1, seconds=choice.seconds)
        with self.meter.phase(choice):
            vae = self.parts.load("vae", choice)
            set_tiling(vae, choice.variant == "tiled")
            with placed(vae, choice, self.meter.device, self.host):
                generator = torch.Generator("cpu").manual_seed(self.request.seed)
                moments = vae.encode(picture.to(vae.device, dtype).to(vae.dtype)).latent_dist
                latents = (moments.sample(generator) - vae.config.shift_factor) * vae.config.scaling_factor
                noise = torch.randn(latents.shape, generator=generator, dtype=dtype)
                finite_check(choice)(latents, "in the latents of the picture")
                begun = latents.to(dtype).cpu(), noise
        progress.step(1)
        return begun

    def _sample(self, choice: PhasePlan, decode: PhasePlan) -> torch.Tensor:
        """Return latents [1, 16, height / 8, width / 8]."""
        import torch
        from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

        request, dtype = self.request, torch_dtype(choice.compute)
        with self._shared(choice) as sharing, self.meter.phase(choice):
            if self.colours is None:
                # In host memory: a second of work there is cheaper than the VAE's way to the card. In fp32, since
                # many processors emulate bf16.
                self.colours = fit_colours(deepcopy(self.parts.load("vae", decode)).float())
            transformer, scheduler = self.parts.load("transformer", choice), self._scheduler()
            kind: Any = ZImagePipeline if self.begun is None else ZImageImg2ImgPipeline
            pipeline = pipeline_of(kind, transformer=transformer, scheduler=scheduler)
            blocks, group = block_order(transformer), None if sharing is None else sharing.group
            texts = [text["states"].to(self.meter.device, dtype) for text in self.texts]
            arguments = {
                "width": request.width,
                "height": request.height,
                "num_inference_steps": request.steps,
                "guidance_scale": request.cfg - 1,
                "prompt_embeds": texts[:1],
                "negative_prompt_embeds": texts[1:],
                "output_type": "latent",
            }
            if self.begun is None:
                # On the CPU, so that one seed gives one image on every card.
                arguments["generator"] = torch.Generator("cpu").manual_seed(request.seed)
            else:
                arguments |= self._beginning(scheduler)
            steps = request.steps - (0 if self.begun is None else self._skipped_steps())
            progress = self.host.progress("Sampling", steps, seconds=choice.seconds - choice.loading)
            preview = FlowPreview(self.colours, scheduler)
            with (
                placed(transformer, choice, self.meter.device, self.host, blocks=blocks, group=group),
                nullcontext() if sharing is None else sharing.calls(transformer),
            ):
                latents: torch.Tensor = pipeline(
                    **arguments, callback_on_step_end=step_callback(progress, preview, finite_check(choice), steps)
                ).images
            forget_angles(transformer)
            return latents.cpu()

    def _shared(self, choice: PhasePlan) -> AbstractContextManager[CallSharing | None]:
        """Have the other ranks at hand while it samples, where the predictions are shared with them."""
        if self.cards is None:
            return nullcontext()
        # Not at the top: one process alone does without them.
        from ..families.shared_calls import calls_shared
        from ..parallel.local_ranks import group_of
        from .shared_sampling import ZImageJob

        group = group_of(self.cards, self.host)
        return calls_shared(ZImageJob, self.parts, choice, self.shared_by, group=group)

    def record(self) -> dict[str, Any]:
        """Return what the run did beside its plan, fit for JSON."""
        return {} if self.shared_by == "off" else {"shared": self.shared_by}

    def _beginning(self, scheduler: FlowMatchEulerDiscreteScheduler) -> dict[str, Any]:
        """Return the arguments of ZImageImg2ImgPipeline for a picture that is encoded already.

        Given latents it takes as they are: the noise goes over them here, at the level of the first step that is
        taken, by a scheduler set as the pipeline sets its own.
        """
        import torch
        from diffusers.pipelines.z_image.pipeline_z_image_img2img import calculate_shift

        assert self.begun is not None and self.picture is not None
        latents, noise = self.begun
        steps = self.request.steps
        twin: Any = deepcopy(scheduler)
        mu = calculate_shift(latents.shape[2] // 2 * (latents.shape[3] // 2))
        twin.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
        first = twin.timesteps[self._skipped_steps()]
        begun = twin.scale_noise(latents, first[None], noise)
        return {"image": self.picture * 0.5 + 0.5, "strength": self.request.strength, "latents": begun}

    def _skipped_steps(self) -> int:
        """Return how many steps are left out for a picture, as ZImageImg2ImgPipeline.get_timesteps counts them."""
        request = self.request
        return int(max(request.steps - request.steps * request.strength, 0))

    def _scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Return a fresh scheduler with the request's shift, and otherwise the folder's own where there is one."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        folder = self.parts.found.place("scheduler")[0]
        config = {"num_train_timesteps": 1000}
        if folder.is_dir():
            config = FlowMatchEulerDiscreteScheduler.load_config(folder, local_files_only=True)
        scheduler: FlowMatchEulerDiscreteScheduler
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, shift=self.request.shift)
        return scheduler
