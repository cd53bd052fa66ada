"""What ComfyUI's own loader makes of a transformer and of its quantized file, in JSON.

`python read_quantized.py CHECKOUT ORIGINAL QUANTIZED`
"""

import json
import sys

checkout, *files = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, checkout)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402


def predicted(path):
    """Return the output of one step, and the type that a layer inside the blocks is held in."""
    patcher = comfy.sd.load_diffusion_model(path, model_options={})
    comfy.model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 6, generator=generator)
    texts = torch.randn(1, 5, 4096, generator=generator)
    control = torch.randn(1, 1, 96, 2, 4, 6, generator=generator)
    with torch.no_grad():
        found = patcher.model.apply_model(
            latents, torch.tensor([0.4]), c_crossattn=texts, vace_context=control, vace_strength=[1.0]
        )
    weight = patcher.model.diffusion_model.blocks[0].self_attn.q.weight
    return found.float(), str(getattr(weight, "_qdata", weight).dtype)


(expected, _), (found, held) = map(predicted, files)
print(json.dumps({"off": ((found - expected).norm() / expected.norm()).item(), "held": held}))
