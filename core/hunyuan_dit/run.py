"""One run of Hunyuan-DiT under a plan: both encoders, sample, decode; what is done stays done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..executor.measure import Meter
from ..executor.placement import placed
from ..executor.tensor_cache import Encoded, encoded
from ..files.dtypes import torch_dtype
from ..host.base import Host
from ..preview import LatentPreview, fit_colours, step_callback
from .model import HunyuanDiTModel, pipeline_of
from .phases import TILE
from .request import ImageRequest

if TYPE_CHECKING:
    import torch
    from diffusers import HunyuanDiTPipeline
    from transformers import PreTrainedModel

    from ..planner.plan_types import PhasePlan, Plan

# (part, phase, text length, suffix of the pipeline's arguments), as in HunyuanDiTPipeline.
ENCODERS = (("text_encoder", "encode", 77, ""), ("text_encoder_2", "encode_2", 256, "_2"))


@dataclass
class ImageRun:
    """A request on its way to an image. `attempt` may be called again after running out of memory.

    Attributes:
        texts: for each encoder what it made of the prompt and, with guidance, of the negative prompt.
        colours: the preview's map from latent channels to colour.
        latents: [1, 4, h, w] on the CPU, once sampled.
    """

    model: HunyuanDiTModel
    request: ImageRequest
    host: Host
    device: str
    meter: Meter
    texts: dict[str, list[Encoded]] = field(default_factory=dict)
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return the image [1, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        for index, (part, phase, _, _) in enumerate(ENCODERS):
            if part not in self.texts:
                self.texts[part] = self._encode(index, plan.phase(phase))
        if self.latents is None:
            self.latents = self._sample(plan.phase("sample"), plan.phase("decode"))
        return self._decode(plan.phase("decode"), self.latents)

    def _encode(self, index: int, choice: PhasePlan) -> list[Encoded]:
        part, _, length, _ = ENCODERS[index]
        request = self.request
        prompts = [request.prompt, request.negative_prompt] if request.cfg > 1 else [request.prompt]
        progress = self.host.progress("Encoding prompt", len(prompts))

        def run(new: list[str]) -> list[Encoded]:
            pipeline = self.model.encoder_pipeline(part, choice)
            encoder = getattr(pipeline, part)
            with placed(encoder, _blocks(encoder), choice, self.device, self.host):
                return [self._one(pipeline, text, index, length) for text in new]

        with self.meter.phase(choice):
            found = encoded(prompts, self.model.parts.identity(part), choice, self.host, run)
        progress.step(len(prompts))
        return found

    def _one(self, pipeline: HunyuanDiTPipeline, text: str, index: int, length: int) -> Encoded:
        self.host.check_cancelled()
        states, _, mask, _ = pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            text_encoder_index=index,
            device=self.device,
            dtype=getattr(pipeline, ENCODERS[index][0]).dtype,
        )
        return {"states": states.cpu(), "mask": mask.cpu()}

    def _arguments(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the embedding and mask arguments that HunyuanDiTPipeline takes in place of a prompt."""
        arguments = {}
        for part, _, _, suffix in ENCODERS:
            for which, text in zip(("", "negative_"), self.texts[part], strict=False):
                arguments[f"{which}prompt_embeds{suffix}"] = text["states"].to(self.device, dtype)
                arguments[f"{which}prompt_attention_mask{suffix}"] = text["mask"].to(self.device)
        return arguments

    def _sample(self, choice: PhasePlan, decode: PhasePlan) -> torch.Tensor:
        """Return latents [1, 4, height / 8, width / 8]."""
        import torch

        with self.meter.phase(choice):
            if self.colours is None:
                # In host memory: a second of work there is cheaper than the VAE's way to the card.
                self.colours = fit_colours(self.model.vae(decode))
            sampler = self.model.sampler(choice)
            transformer = sampler.transformer
            progress = self.host.progress("Sampling", self.request.steps)
            preview = LatentPreview(self.colours, sampler.scheduler)
            with placed(transformer, list(transformer.blocks), choice, self.device, self.host):
                latents: torch.Tensor = sampler(
                    **self._arguments(torch_dtype(choice.compute)),
                    width=self.request.width,
                    height=self.request.height,
                    num_inference_steps=self.request.steps,
                    guidance_scale=self.request.cfg,
                    # On the CPU, so that one seed gives one image on every card.
                    generator=torch.Generator("cpu").manual_seed(self.request.seed),
                    use_resolution_binning=False,
                    callback_on_step_end=step_callback(progress, preview),
                    output_type="latent",
                ).images
            return latents.cpu()

    def _decode(self, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        """Return the image [1, H, W, 3] float32 in 0..1, computed as HunyuanDiTPipeline does."""
        progress = self.host.progress("Decoding", 1)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)
            vae.use_tiling = choice.variant == "tiled"
            # diffusers' own tile is as large as the largest picture it was trained on.
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // 8
            with placed(vae, [], choice, self.device, self.host):
                latents = latents.to(vae.device, vae.dtype)
                decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
                processor = pipeline_of().image_processor
                image = processor.postprocess(decoded, output_type="pt", do_denormalize=[True])
                image = image.permute(0, 2, 3, 1).float().cpu().contiguous()
        progress.step(1)
        return image


def _blocks(encoder: PreTrainedModel) -> list[torch.nn.Module]:
    """Return a text encoder's blocks, of BERT or of T5."""
    stack = encoder.encoder
    return list(stack.block if hasattr(stack, "block") else stack.layer)
