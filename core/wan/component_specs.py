"""Components of Wan's models, with VACE and without: their classes, and which of their layers may be cast."""

from __future__ import annotations

from ..families.base import ComponentSpec
from ..quantization.policy import CastRules

FP32_MODULES = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
VACE_TRANSFORMER = ComponentSpec(
    name="transformer",
    classes=("WanVACETransformer3DModel",),
    rules=CastRules(
        ("blocks", "vace_blocks"),
        keep={
            "vace_blocks.*.proj_in": "projections into the VACE blocks are sensitive to rounding",
            "vace_blocks.*.proj_out": "projections out of the VACE blocks are sensitive to rounding",
        },
        spared=("patch_embedding", "vace_patch_embedding", "condition_embedder", "norm"),
        fp32_modules=dict.fromkeys(("bf16", "fp16"), FP32_MODULES),
    ),
)
TRANSFORMER = ComponentSpec(
    name="transformer",
    classes=("WanTransformer3DModel",),
    rules=CastRules(
        ("blocks",),
        spared=("patch_embedding", "condition_embedder", "norm"),
        fp32_modules=dict.fromkeys(("bf16", "fp16"), FP32_MODULES),
    ),
)
TEXT_ENCODER = ComponentSpec(
    name="text_encoder",
    classes=("UMT5EncoderModel",),
    model_types={"umt5": "UMT5EncoderModel"},
    rules=CastRules(
        ("encoder.block",),
        keep={"*.relative_attention_bias": "an embedding, which is looked up and not multiplied"},
        fp32_modules={"fp16": ("wo",)},
    ),
)
VAE = ComponentSpec(name="vae", classes=("AutoencoderKLWan",))
REQUIRED = ("transformer", "text_encoder", "tokenizer", "vae")
MISSING = {
    "text_encoder": "the UMT5-XXL text encoder, in models/text_encoders",
    "tokenizer": "the tokenizer of UMT5-XXL, inside that file or in a folder of models/tokenizers",
    "vae": "the Wan2.1 VAE, in models/vae",
}
REMEDY = "Put it there"
PLANNED_INPUTS = (
    "width",
    "height",
    "num_frames",
    "cfg",
    "steps",
    "shift",
    "speed",
    "step_cache",
    "batch_cfg",
    "vae_precision",
    "scheduler",
    "sigmas",
    "boundary",
    "cfg_2",
    "guidance",
    "context",
    "start_at_step",
    "end_at_step",
)
