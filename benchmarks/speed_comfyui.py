"""ComfyUI as a contender of the speed benchmark, in a subprocess: it has modules called `nodes` and `execution`.

    python benchmarks/speed_comfyui.py CHECKOUT SPECIFICATION.json

Answers a line of JSON with one: the first with the version and with what the model predicts, those that follow with
seconds and latents of a video. Tensors travel in files.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import clock, is_card
from wan_comfyui import TORCH_ATTENTION, original_name, predicted, start

# ComfyUI's word for UniPC with B(h) = exp(h) - 1, diffusers' "bh2", and its usual time steps.
SAMPLER, SCHEDULER = "uni_pc_bh2", "simple"


def load(specification: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return ComfyUI's model on the weights of a folder in diffusers' form.

    ComfyUI reads the shape off the weights and takes heads of 128 and latents of 16 channels for granted; the
    built-in model has neither, so both are said here. Its latents are given, and taken, as the transformer has them.
    """
    latents, models = (
        importlib.import_module("comfy.latent_formats"),
        importlib.import_module("comfy.supported_models"),
    )
    management = importlib.import_module("comfy.model_management")
    folder = Path(specification["folder"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    class Plain(latents.LatentFormat):  # type: ignore[misc, name-defined]
        latent_channels, latent_dimensions = config["in_channels"], 3

    class Model(models.WAN21_Vace):  # type: ignore[misc, name-defined]
        latent_format = Plain

    chosen = Model(_shape(config))
    chosen.set_inference_dtype(dtype, None)
    model = chosen.get_model({}, "", device=management.unet_offload_device())
    model.diffusion_model.load_state_dict(_weights(folder))
    model.diffusion_model.eval()
    # What ModelSamplingSD3 does, whose module needs all of ComfyUI and PyAV.
    model.model_sampling.set_parameters(shift=specification["shift"], multiplier=1000)
    return importlib.import_module("comfy.model_patcher").ModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """Return ComfyUI's words for the shape of a transformer."""
    return {
        "image_model": "wan2.1",
        "model_type": "vace",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "freq_dim": config["freq_dim"],
        "text_dim": config["text_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "patch_size": tuple(config["patch_size"]),
        "eps": config["eps"],
        "vace_layers": len(config["vace_layers"]),
        "vace_in_dim": config["vace_in_channels"],
    }


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    state = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    return {original_name(name): tensor for name, tensor in state.items()}


class Sampler:
    """ComfyUI's KSampler, with the sampling inside it timed as our loop over the steps is."""

    def __init__(self, patcher: Any, specification: dict[str, Any]) -> None:
        self.patcher, self.specification = patcher, specification
        self.seconds, self.predictions = 0.0, 0
        device, way = specification["device"], importlib.import_module("comfy.samplers").KSAMPLER
        sample = way.sample

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = clock(device)
            samples = sample(*arguments, **named)
            self.seconds = clock(device) - begun
            return samples

        way.sample = timed
        patcher.model.diffusion_model.blocks[-1].register_forward_hook(self._count)

    def _count(self, _: Any, given: tuple[Any, ...], result: torch.Tensor) -> None:
        self.predictions += result.shape[0]

    def video(self, noise: torch.Tensor, embeds: list[torch.Tensor], control: torch.Tensor) -> torch.Tensor:
        """Return latents [1, z, T, h, w] of a prompt and a negative one."""
        kept = 2 * noise.shape[1]  # channels of the two encoded parts; the mask follows them
        extra = {"vace_frames": [control[:, :kept]], "vace_mask": [control[:, kept:]], "vace_strength": [1.0]}
        positive, negative = ([[each, dict(extra)]] for each in embeds)
        self.predictions = 0
        said = self.specification
        return importlib.import_module("comfy.sample").sample(
            self.patcher,
            noise,
            said["steps"],
            said["cfg"],
            SAMPLER,
            SCHEDULER,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )


def first(patcher: Any, asked: dict[str, Any], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return what the model predicts for both prompts from noise, [2, z, T, h, w]."""
    importlib.import_module("comfy.model_management").load_models_gpu([patcher])
    given = {name: asked[name].to(device, dtype) for name in ("latents", "control")}
    embeds = [each.to(device, dtype) for each in asked["embeds"]]
    return predicted(patcher, timestep=asked["timestep"].to(device), embeds=embeds, **given).float()


def main() -> None:
    """Answer until there are no more questions."""
    checkout, specification = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    answers, sys.stdout = sys.stdout, sys.stderr  # what ComfyUI prints is no answer
    device, dtype = specification["device"], getattr(torch, specification["dtype"])
    version = start(checkout, device, *([] if is_card(device) else [TORCH_ATTENTION]))
    with torch.inference_mode():
        patcher = load(specification, dtype)
        sampler = Sampler(patcher, specification)
        for line in sys.stdin:
            question = json.loads(line)
            asked = torch.load(question["given"])
            if "timestep" in asked:
                result, found = first(patcher, asked, dtype, device), {"version": version, "torch": torch.__version__}
            else:
                result = sampler.video(**asked)
                found = {"seconds": sampler.seconds, "predictions": sampler.predictions}
            torch.save(result.float().cpu().clone(), question["result"])
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
