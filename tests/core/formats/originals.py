"""The authors' own models, from checkouts that environment variables name; never part of this repository."""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

from .models import HUNYUAN, randomised


def checkout(variable):
    """Return the checkout that a variable names, or skip."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no checkout of the original code")
    return Path(path)


def package(name, folder):
    """Make the package `name` findable without running its __init__, which imports pipelines and their needs."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def plain_attention(q, k, v, **options):
    """Attention in the type of its input, where the original has a CUDA kernel: [batch, tokens, heads, width]."""
    del options
    result = torch.nn.functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
    return result.transpose(1, 2)


def wan():
    """Return Wan2.1's modules: model, vace_model, vae, t5."""
    root = checkout("WAN_PATH") / "wan"
    pytest.importorskip("einops", reason="the original VAE needs einops")
    if "wan" not in sys.modules:
        package("wan", root)
        package("wan.modules", root / "modules")
    names = ("model", "vace_model", "vae", "t5")
    # Its text encoder asks for the current card as it is defined, also where there is none.
    with mock.patch("torch.cuda.current_device", lambda: 0):
        found = types.SimpleNamespace(**{name: importlib.import_module(f"wan.modules.{name}") for name in names})
    found.model.flash_attention = plain_attention
    return found


def wan22():
    """Return Wan2.2's modules: model, vae2_2."""
    root = checkout("WAN22_PATH") / "wan"
    pytest.importorskip("einops", reason="the original VAE needs einops")
    package("wan22", root)
    package("wan22.modules", root / "modules")
    found = types.SimpleNamespace(
        **{name: importlib.import_module(f"wan22.modules.{name}") for name in ("model", "vae2_2")}
    )
    found.model.flash_attention = plain_attention
    return found


def videox():
    """Return VideoX-Fun's module of the VACE transformer; what it takes for many cards and CUDA is stood in for."""
    root = checkout("VIDEOX_PATH") / "videox_fun"
    pytest.importorskip("einops", reason="the original model needs einops")
    package("videox_fun", root)
    package("videox_fun.models", root / "models")
    pretend("videox_fun.utils", cfg_skip=lambda: lambda function: function)
    names = ("get_sequence_parallel_rank", "get_sequence_parallel_world_size", "get_sp_group", "usp_attn_forward")
    pretend("videox_fun.dist", **dict.fromkeys((*names, "xFuserLongContextAttention"), lambda *given: 1))
    pretend("videox_fun.models.attention_utils", attention=lambda q, k, v, *others, **named: plain_attention(q, k, v))
    return importlib.import_module("videox_fun.models.wan_transformer3d_vace")


def wan_transformer(modules):
    """Return a VaceWanModel of the sizes of models.WAN."""
    sizes = {"dim": 128, "ffn_dim": 160, "num_heads": 1, "num_layers": 4, "vace_layers": [0, 2], "vace_in_dim": 96}
    return randomised(modules.vace_model.VaceWanModel(text_dim=48, text_len=5, in_dim=16, out_dim=16, **sizes))


class Mlp(torch.nn.Module):
    """What hydit takes from timm: two layers."""

    def __init__(self, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1 = torch.nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = torch.nn.Linear(hidden_features, in_features)

    def forward(self, inputs):
        return self.fc2(self.act(self.fc1(inputs)))


def pretend(name, **contents):
    """Stand in for a package of which the original imports a name or two."""
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules.setdefault(name, module)


def hunyuan():
    """Return Tencent's hydit.modules.models and hydit.modules.posemb_layers."""
    root = checkout("HUNYUANDIT_PATH") / "hydit"
    pytest.importorskip("einops", reason="the original model needs einops")
    if "hydit" not in sys.modules:
        pretend("timm")
        pretend("timm.models")
        pretend("timm.models.vision_transformer", Mlp=Mlp)
        pretend("timm.models.layers", to_2tuple=lambda value: value if isinstance(value, tuple) else (value, value))
        pretend("peft")
        pretend("peft.utils", ModulesToSaveWrapper=object, _get_submodules=None)
        package("hydit", root)
        package("hydit.modules", root / "modules")
    return (
        importlib.import_module("hydit.modules.models"),
        importlib.import_module("hydit.modules.posemb_layers"),
    )


def hunyuan_transformer(module, conditions):
    """Return a HunYuanDiT of the sizes of models.HUNYUAN; `conditions` of size and style are those of v1.1."""
    arguments = types.SimpleNamespace(
        learn_sigma=True,
        text_states_dim=HUNYUAN["cross_attention_dim"],
        text_states_dim_t5=HUNYUAN["cross_attention_dim_t5"],
        text_len=HUNYUAN["text_len"],
        text_len_t5=HUNYUAN["text_len_t5"],
        norm="layer",
        is_ipa=False,
        infer_mode="torch",
        use_flash_attn=False,
        qk_norm=True,
        size_cond=[1024, 1024] if conditions else None,
        use_style_cond=conditions,
        use_fp16=False,
    )
    sizes = {"hidden_size": 32, "depth": 4, "num_heads": 2, "mlp_ratio": HUNYUAN["mlp_ratio"]}
    return randomised(module.HunYuanDiT(arguments, input_size=(8, 8), log_fn=lambda text: None, **sizes))
