"""ComfyUI as a contender of the step benchmark, in a subprocess: it has modules called `nodes` and `execution`.

    python benchmarks/wan_comfyui.py CHECKOUT SPECIFICATION.json

Writes the results' tensors where the specification says, and prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import CONTEXT, GB, hold_to, is_card, peak, seconds, settle
from wan_models import Shape, inputs, weights

# diffusers' names → the original ones, which ComfyUI reads
# (diffusers, scripts/convert_wan_to_diffusers.py, TRANSFORMER_KEYS_RENAME_DICT, the other way round).
NAMES = [
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"scale_shift_table$", "modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
]


# On a card ComfyUI takes torch's attention by itself; without one it has to be told.
TORCH_ATTENTION = "--use-pytorch-cross-attention"


def original_name(name: str) -> str:
    """Return the name a weight of diffusers' has in the original checkpoints."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load(specification: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    """Return ComfyUI's model on the same random weights, placed as ComfyUI places it."""
    management = importlib.import_module("comfy.model_management")
    if specification["cap"] is not None:
        _stand_in(management, specification["cap"] * GB - CONTEXT, device)
    state = weights(specification["model"], dtype, device)
    state = {original_name(name): tensor for name, tensor in state.items()}
    options = {"dtype": getattr(torch, specification["storage"])} if specification["storage"] else {"dtype": dtype}
    patcher = importlib.import_module("comfy.sd").load_diffusion_model_state_dict(state, model_options=options)
    rows = Shape(specification["model"], specification["size"]).latent
    management.load_models_gpu([patcher], patcher.model.memory_required([2, 16, *rows]))
    return patcher


def _stand_in(management: Any, limit: float, device: str) -> None:
    """Have ComfyUI take the card for one of `limit` bytes; torch alone is held to it."""

    def free(dev: Any = None, torch_free_too: bool = False) -> Any:
        left = max(0, limit - torch.cuda.memory_reserved(device))
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (left + idle, idle) if torch_free_too else left + idle

    management.get_free_memory = free
    management.get_total_memory = lambda dev=None, torch_total_too=False: (limit, limit) if torch_total_too else limit


def predicted(
    patcher: Any, latents: torch.Tensor, timestep: torch.Tensor, embeds: list[torch.Tensor], control: torch.Tensor
) -> torch.Tensor:
    """Return the prediction for two prompts in one batch, as ComfyUI samples: [2, z, T, h, w]."""
    return patcher.model.diffusion_model(
        latents.expand(2, -1, -1, -1, -1),
        timestep.expand(2),
        torch.cat(embeds),
        vace_context=control.unsqueeze(1).expand(2, -1, -1, -1, -1, -1),
        vace_strength=[1.0],
        transformer_options={},
    )


def start(checkout: Path, device: str, *options: str) -> str:
    """Have ComfyUI's modules be found, with the options of its command line; return its version."""
    sys.path.insert(0, str(checkout))
    sys.argv[1:] = list(options) if is_card(device) else ["--cpu", *options]
    importlib.import_module("comfy.options").enable_args_parsing()
    return str(importlib.import_module("comfyui_version").__version__)


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a few steps, both prompts in one batch, as ComfyUI samples."""
    device, dtype = specification["device"], getattr(torch, specification["dtype"])
    settle(device)
    hold_to(specification["cap"], device)
    given = inputs(Shape(specification["model"], specification["size"]), dtype, device)
    with torch.inference_mode():
        patcher = load(specification, dtype, device)
        settle(device)

        def step() -> torch.Tensor:
            return predicted(patcher, **given)

        result = step()
        times = [seconds(step, device) for _ in range(specification["steps"])]
        found = {"seconds": times, "peak": peak(step, device)}
    torch.save([each[None].float().cpu() for each in result], specification["result"])
    return found


def main() -> None:
    """Measure what the specification names."""
    checkout, specification = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    version = start(checkout, specification["device"], *specification["options"])
    try:
        found = measure(specification)
    except torch.OutOfMemoryError:
        found = {"error": "out of memory"}
    print(json.dumps(found | {"version": version}))


if __name__ == "__main__":
    main()
