"""Layers that hold their weight in other ways than torch.nn.Linear."""

from __future__ import annotations

import torch


class Float8Linear(torch.nn.Module):
    """A layer with a float8 weight, a float32 scale in a buffer, and a bias in bf16: three types in one block."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 448
        self.weight = torch.nn.Parameter((linear.weight / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = torch.nn.Parameter(linear.bias.to(torch.bfloat16), requires_grad=False)

    def forward(self, given):
        return torch.nn.functional.linear(given, self.weight.float() * self.scale, self.bias.float())


class LoRALinear(torch.nn.Module):
    """A layer with an adapter beside it, in the form peft gives it."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(linear.in_features, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, linear.out_features, bias=False)})

    def forward(self, given):
        return self.base_layer(given) + 0.5 * self.lora_B["default"](self.lora_A["default"](given))
