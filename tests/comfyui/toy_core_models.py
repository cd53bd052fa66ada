"""Random Wan VACE weights, small, in the files that ComfyUI's own loaders read.

`python toy_core_models.py CHECKOUT MODELS`. The VAE has its real width: ComfyUI takes no other.
"""

import sys
from pathlib import Path

checkout, models = sys.argv[1], Path(sys.argv[2])
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, checkout)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.wan.model import VaceWanModel  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def save(module, path, dtype):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in module.state_dict().items():
        fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
        noise = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        is_norm = name.endswith("gamma") or "norm" in name.rsplit(".", 2)[-2]
        weights[name] = (torch.ones_like(noise) if is_norm else noise * (1 if tensor.dim() > 1 else 0.1)).to(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)


with torch.device("meta"):
    transformer = VaceWanModel(
        dim=128, ffn_dim=64, num_heads=1, num_layers=2, vace_layers=1, vace_in_dim=96, operations=comfy.ops.manual_cast
    )
    vae = WanVAE(
        dim=96,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
save(transformer, models / "diffusion_models" / "toy_vace.safetensors", torch.float32)
save(vae, models / "vae" / "toy_vae.safetensors", torch.float16)
