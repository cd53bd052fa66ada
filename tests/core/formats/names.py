"""From the names of diffusers and transformers to the original ones: the way back, written by itself."""

from __future__ import annotations

import re

import torch


def wan_transformer(state):
    """Return VaceWanModel's tensors (wan/modules/model.py, vace_model.py)."""
    pairs = (
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("norm2", "norm3"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("proj_in", "before_proj"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm3", "img_emb.proj.4"),  # norm2, by a pair above
        ("add_k_proj", "k_img"),
        ("add_v_proj", "v_img"),
        ("norm_added_k", "norm_k_img"),
    )
    found = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in pairs:
            new = new.replace(theirs, ours)
        if "blocks." in new:
            new = new.replace("scale_shift_table", "modulation").replace("proj_out", "after_proj")
        new = re.sub(r"^scale_shift_table", "head.modulation", new)
        found[re.sub(r"^proj_out", "head.head", new)] = tensor
    return found


def wan_vae(state, resnets=3):
    """Return WanVAE_'s tensors (wan/modules/vae.py); `resnets` residual blocks in each level of the decoder."""
    blocks = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    blocks["conv_shortcut"] = "shortcut"
    ends = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        own = parts[-1]
        if parts[0] in ("quant_conv", "post_quant_conv"):
            new = [{"quant_conv": "conv1", "post_quant_conv": "conv2"}[parts[0]]]
        elif parts[1] in ends:
            new = [parts[0], ends[parts[1]]]
        elif parts[1] == "mid_block" and parts[2] == "attentions":
            new = [parts[0], "middle.1", parts[4]]
        elif parts[1] == "mid_block":
            new = [parts[0], "middle", "02"[int(parts[3])], blocks[parts[4]]]
        elif parts[1] == "down_blocks":
            new = ["encoder.downsamples", parts[2], blocks.get(parts[3], ".".join(parts[3:-1]))]
        else:
            step = resnets if parts[3] == "upsamplers" else int(parts[4])
            index = int(parts[2]) * (resnets + 1) + step
            new = ["decoder.upsamples", str(index), blocks.get(parts[5], ".".join(parts[5:-1]))]
        found[".".join([*new, own])] = tensor
    return found


def umt5(state):
    """Return T5Encoder's tensors (wan/modules/t5.py)."""
    pairs = (
        ("encoder.block.", "blocks."),
        ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
        ("layer.0.SelfAttention", "attn"),
        ("layer.0.layer_norm", "norm1"),
        ("layer.1.layer_norm", "norm2"),
        ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
        ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
        ("layer.1.DenseReluDense.wo", "ffn.fc2"),
        ("encoder.final_layer_norm", "norm"),
        ("shared", "token_embedding"),
    )
    found = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in pairs:
            new = new.replace(theirs, ours)
        if name != "encoder.embed_tokens.weight":
            found[new] = tensor
    return found


def hunyuan_transformer(state):
    """Return HunYuanDiT's tensors (hydit/modules/models.py)."""
    pairs = (
        ("text_embedder.linear_1", "mlp_t5.0"),
        ("text_embedder.linear_2", "mlp_t5.2"),
        ("pos_embed.proj", "x_embedder.proj"),
        ("time_extra_emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        ("time_extra_emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_extra_emb.extra_embedder.linear_1", "extra_embedder.0"),
        ("time_extra_emb.extra_embedder.linear_2", "extra_embedder.2"),
        ("time_extra_emb.", ""),
        ("norm1.linear", "default_modulation.1"),
        ("norm1.norm", "norm1"),
        ("norm_q", "q_norm"),
        ("norm_k", "k_norm"),
        ("to_out.0", "out_proj"),
        ("attn2.to_q", "attn2.q_proj"),
        ("ff.net.0.proj", "mlp.fc1"),
        ("ff.net.2", "mlp.fc2"),
        ("norm2", "norm_third"),
        ("norm3", "norm2"),
        ("norm_third", "norm3"),
    )
    found = {}
    joined = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in pairs:
            new = new.replace(theirs, ours)
        new = re.sub(r"^proj_out", "final_layer.linear", new)
        if new.startswith("norm_out.linear"):
            scale, shift = tensor.chunk(2)
            new, tensor = new.replace("norm_out.linear", "final_layer.adaLN_modulation.1"), torch.cat([shift, scale])
        part = re.fullmatch(r"(blocks\.\d+\.attn[12]\.)to_([qkv])\.(.+)", new)
        if part:
            layer = part[1] + ("Wqkv." if "attn1" in new else "kv_proj.") + part[3]
            joined.setdefault(layer, {})[part[2]] = tensor
        else:
            found[new] = tensor
    return found | {layer: torch.cat([parts[one] for one in "qkv" if one in parts]) for layer, parts in joined.items()}


def kl_vae(state, levels=3):
    """Return the tensors of latent-diffusion's AutoencoderKL."""
    found = {}
    for name, tensor in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = re.sub(r"downsamplers\.0", "downsample", re.sub(r"upsamplers\.0", "upsample", new))
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new).replace("resnets.", "block.")
        new = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out").replace("to_", "")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[new] = tensor
    return found


def z_image_transformer(state):
    """Names of Tongyi-MAI/Z-Image, with the projections of an attention joined as ComfyUI's files have them."""
    names = {"norm_q": "q_norm", "norm_k": "k_norm", "to_out.0": "out"}
    found = {}
    for name, tensor in state.items():
        new = re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)
        for theirs, ours in names.items():
            new = new.replace(f"attention.{theirs}.", f"attention.{ours}.")
        if ".attention.to_q." in name:
            parts = [state[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            found[new.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            found[new] = tensor
    return found
