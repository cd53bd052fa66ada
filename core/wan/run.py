"""One run of Wan VACE under a plan: encode, condition, sample, decode; what is done stays done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..compile_errors import in_short
from ..executor.measure import Meter
from ..executor.placement import placed
from ..executor.retry import check_of
from ..executor.tensor_cache import TensorCache, digest
from ..files.dtypes import torch_dtype
from ..host.base import Host
from ..preview import LatentPreview, fit_colours
from .attention import Attention
from .conditioning import EncodedTasks, Tensors, VACEInputs, encode_with, encoded, with_mask
from .decode import decode, decode_steps, tiling
from .denoise import denoise
from .model import WanVACEModel
from .phases import BATCHED
from .request import AUTO_VAE, VACERequest
from .step_cache import StepCache
from .text_encoding import encode
from .transformer import block_order, compiled, why_not

if TYPE_CHECKING:
    import torch
    from diffusers import WanVACETransformer3DModel

    from ..planner.plan_types import PhasePlan, Plan

log = logging.getLogger("piying")


KEPT_LATENTS = 4  # videos whose latents outlive the run, 20 MB each at 720p


@dataclass
class VACERun:
    """A request on its way to frames. `attempt` may be called again after running out of memory.

    Attributes:
        attention: which kernel computes it.
        cache: forecasts steps that hardly differ; None computes every one.
        on_latents: told the video's latents [1, z, T, h, w] once they are there, before they are decoded.
        embeds, control, latents: results of finished phases, on the CPU.
        colours: the preview's map from latent channels to colour.
    """

    model: WanVACEModel
    request: VACERequest
    inputs: VACEInputs
    host: Host
    device: str
    meter: Meter
    attention: Attention
    cache: StepCache | None = None
    on_latents: Callable[[torch.Tensor], None] | None = None
    embeds: list[torch.Tensor] = field(default_factory=list)
    control: torch.Tensor | None = None
    colours: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def attempt(self, plan: Plan) -> torch.Tensor:
        """Return frames [N, H, W, 3] float32 in 0..1 on the CPU.

        Raises:
            PhaseOutOfMemoryError: a phase does not fit; phases before it are not run again.
        """
        if not self.embeds:
            self.embeds = self._encode(plan.phase("encode"))
        if self.control is None:
            self.control, self.colours = self._condition(plan.phase("condition"))
        if self.latents is None:
            self.latents = self._latents(plan.phase("sample"))
            if self.on_latents is not None:
                self.on_latents(self.latents)
        return self._decode(plan.phase("decode"), self.latents)

    def _encode(self, choice: PhasePlan) -> list[torch.Tensor]:
        request = self.request
        prompts = [request.prompt, request.negative_prompt] if request.cfg > 1 else [request.prompt]
        with self.meter.phase(choice):
            return encode(prompts, self.model, choice, self.device, self.host)

    def _condition(self, choice: PhasePlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the control [1, 2z + 64, T, h, w] and the preview's colours.

        Latents of a task that was seen before, with whatever prompt and seed, are not encoded again.
        """
        kind = self.device.partition(":")[0]
        how = f"{choice.compute} {choice.storage} {choice.variant} {choice.placement} {kind}"
        by = {"vae": self.model.parts.identity("vae"), "as": how}
        tasks = EncodedTasks.under(self.host.cache_folder(), by)
        kept = tasks.once(self.inputs, lambda: self._encoded_task(choice, tasks))
        return with_mask(kept["latents"], self.inputs), kept["colours"]

    def _encoded_task(self, choice: PhasePlan, tasks: EncodedTasks) -> Tensors:
        """Return the task's latents [1, 2z, T, h, w] and the preview's colours, on the CPU."""
        check = check_of(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)

            def checked(video: torch.Tensor) -> torch.Tensor:
                latents = encode_with(vae, video)
                check(latents)
                return latents.cpu()

            with placed(vae, [], choice, self.device, self.host):
                progress = self.host.progress("Preparing the task", 1)
                with tiling(vae, choice.variant == "tiled"):
                    latents = encoded(tasks.gray_once(checked), self.inputs)
                colours = fit_colours(vae)
                progress.step(1)
        return {"latents": latents, "colours": colours}

    def _latents(self, choice: PhasePlan) -> torch.Tensor:
        """Return latents [1, z, T, h, w], of a run before where one made the very same.

        They are kept until later runs push them out, so that a decode or a save that failed can be
        done again without sampling.
        """
        store = TensorCache(self.host.cache_folder() / "latents", KEPT_LATENTS)
        key = self._key(choice)
        kept = store.get(key)
        if kept is not None:
            log.info("The latents of this video are kept from a run before: going on from them.")
            return kept["latents"]
        latents = self._sample(choice)
        store.put(key, {"latents": latents})
        return latents

    def _key(self, choice: PhasePlan) -> dict[str, Any]:
        assert self.control is not None
        before = self.inputs.before
        tensors = [self.control, *self.embeds, *([] if before is None else [before.latents, before.weights()])]
        steps, kind = self.request.steps, self.device.partition(":")[0]
        return {
            "model": self.model.parts.identity("transformer"),
            "as": f"{choice.compute} {choice.storage} {choice.fp8_matmul} {choice.variant} {kind}",
            "attention": self.attention.name,
            # What the VAE computes in is in the control already, and decoding is not part of the latents.
            "request": asdict(replace(self.request, vae_precision=AUTO_VAE)),
            "scales": [self.inputs.scale_at(step, steps) for step in range(steps)],
            "tensors": digest(tensors),
        }

    def _sample(self, choice: PhasePlan) -> torch.Tensor:
        with self.meter.phase(choice):
            transformer = self.model.transformer(choice)
            with (
                placed(transformer, block_order(transformer), choice, self.device, self.host),
                self.attention.used(choice.compute),
            ):
                latents = self._compiled(transformer, choice)
                if latents is None:
                    latents = self._loop(transformer, choice)
            if self.cache is not None:
                self.cache.let_go()
        return latents[:, :, len(self.inputs.references) :].cpu()

    def _compiled(self, transformer: WanVACETransformer3DModel, choice: PhasePlan) -> torch.Tensor | None:
        """Return what `_loop` gives with compiled blocks; None where they are not wanted, or cannot be made here."""
        if not self.request.compile_blocks:
            return None
        reason = why_not(choice, self.device)
        if reason:
            log.info("compile_blocks is left out: %s.", reason)
            return None
        from torch._dynamo.exc import TorchDynamoException

        try:
            with compiled(transformer):
                return self._loop(transformer, choice)
        except TorchDynamoException as error:
            log.warning("Compiling the blocks failed (%s). They run as they are.", in_short(error))
        return None

    def _loop(self, transformer: WanVACETransformer3DModel, choice: PhasePlan) -> torch.Tensor:
        """Return latents of references and video on the device."""
        import torch

        assert self.control is not None and self.colours is not None
        dtype = torch_dtype(choice.compute)
        request, before = self.request, self.inputs.before
        # On the CPU, so that one seed gives one video on every card.
        generator = torch.Generator("cpu").manual_seed(request.seed)
        noise = torch.randn((1, transformer.config.in_channels, *self.control.shape[2:]), generator=generator)
        scheduler = self.model.scheduler(request.shift)
        if self.cache is not None:
            self.cache.clear()  # of an attempt before, which ran out of memory
        preview = LatentPreview(self.colours, scheduler, len(self.inputs.references))
        progress = self.host.progress("Sampling", request.steps)
        return denoise(
            transformer,
            scheduler,
            noise.to(self.device),
            [states.to(self.device, dtype) for states in self.embeds],
            self.control.to(self.device, dtype),
            request.steps,
            request.cfg_at,
            self.inputs.scale_at,
            lambda done, latents: progress.step(done, preview.of(latents)),
            self.host.check_cancelled,
            self.cache,
            None if before is None else before.steer(len(self.inputs.references)),
            choice.variant == BATCHED,
        )

    def _decode(self, choice: PhasePlan, latents: torch.Tensor) -> torch.Tensor:
        tiled, check = choice.variant == "tiled", check_of(choice)
        with self.meter.phase(choice):
            vae = self.model.vae(choice)
            with placed(vae, [], choice, self.device, self.host):
                progress = self.host.progress("Decoding", decode_steps(vae, latents, tiled))
                return decode(vae, latents, tiled, progress.step, check)
