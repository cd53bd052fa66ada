"""The image autoencoder: like the video one, its encoder is set by hand, and only its decoder is trained.

A latent pixel is the mean colour of an 8×8 block and one number that is not zero at the borders.
GroupNorm over all channels and pixels of a picture takes the place of Wan's norm; large constants
of both signs keep its mean at zero and its spread fixed.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

WIDTHS = (8, 16, 32, 32)
SCALE = 1.7  # brings block colours in -1..1 to a spread of about one
LARGE = 256.0
SILU_OF_ONE = functional.silu(torch.tensor(1.0)).item()
# Channels behind the encoder's blocks: colours, their negatives, one and minus one, the constants.
PLUS, MINUS, ONE, MINUS_ONE, CONSTANTS = 0, 3, 6, 7, (8, 9)


def image_autoencoder() -> AutoencoderKL:
    """Return an image autoencoder with its encoder set and its decoder a copier of block colours."""
    vae = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=1,
        layers_per_block=1,
        scaling_factor=SCALE,
    )
    with torch.no_grad():
        set_image_encoder(vae)
        start_image_decoder(vae)
    return vae


def set_image_encoder(vae: AutoencoderKL) -> None:
    """Set the encoder's weights by hand."""
    encoder = vae.encoder
    for weight in encoder.parameters():
        weight.zero_()
    for colour in range(3):
        _copy(encoder.conv_in, PLUS + colour, colour)
        _copy(encoder.conv_in, MINUS + colour, colour, -1)
    encoder.conv_in.bias[ONE], encoder.conv_in.bias[MINUS_ONE] = 1, -1
    for block in encoder.down_blocks:
        _pass_on(block)
    last = encoder.mid_block.resnets[-1].conv2
    for channel, sign in zip(CONSTANTS, (1, -1), strict=True):
        last.bias[channel] = sign * LARGE
    encoder.conv_norm_out.weight.fill_(LARGE * math.sqrt(len(CONSTANTS) / WIDTHS[-1]))
    _read_latents(encoder.conv_out)
    for channel in range(8):
        _only(vae.quant_conv, channel)
    for channel in range(4):
        _only(vae.post_quant_conv, channel)


def _pass_on(block: nn.Module) -> None:
    """Let a down block hand on its first eight channels, 2×2 pixels averaged."""
    shortcut = block.resnets[0].conv_shortcut
    if shortcut is not None:
        for channel in range(8):
            _copy(shortcut, channel, channel)
    for down in block.downsamplers or []:
        for channel in range(8):
            down.conv.weight[channel, channel, :2, :2] = 0.25


def _read_latents(conv: nn.Conv2d) -> None:
    """Let the encoder's last convolution undo SiLU and mark the borders; no spread."""
    for colour in range(3):
        conv.weight[colour, PLUS + colour, 1, 1] = 1
        conv.weight[colour, MINUS + colour, 1, 1] = -1
    # A constant minus its neighbour is nothing but at the border, where the neighbour is padding.
    one = 1 / SILU_OF_ONE / SCALE
    conv.weight[3, ONE, 1, 0], conv.weight[3, ONE, 1, 2] = one / 2, -one / 2
    conv.weight[3, ONE, 0, 1], conv.weight[3, ONE, 2, 1] = one, -one
    conv.bias[4:] = -30  # the logarithm of no variance


def _copy(conv: nn.Conv2d, to: int, source: int, factor: float = 1) -> None:
    """Let a convolution copy a channel through the middle of its kernel."""
    conv.weight[to, source, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = factor


def _only(conv: nn.Conv2d, channel: int) -> None:
    conv.weight[channel].zero_(), conv.bias[channel].zero_()
    _copy(conv, channel, channel)


def start_image_decoder(vae: AutoencoderKL) -> None:
    """Set the decoder to copy block colours: a place to start."""
    decoder = vae.decoder
    for block in [*decoder.mid_block.resnets, *(r for up in decoder.up_blocks for r in up.resnets)]:
        block.conv2.weight.mul_(0.1)
        if block.conv_shortcut is not None:
            _keep_first(block.conv_shortcut)
    decoder.mid_block.attentions[0].to_out[0].weight.mul_(0.1)
    for conv in [decoder.conv_in, *(u.conv for up in decoder.up_blocks for u in up.upsamplers or [])]:
        _keep_first(conv)
    _finish(decoder)


def _keep_first(conv: nn.Conv2d) -> None:
    """Add a copy of the first four channels to a convolution's small random weights."""
    conv.weight.mul_(0.1), conv.bias.zero_()
    for channel in range(4):
        _copy(conv, channel, channel)


def _finish(decoder: nn.Module) -> None:
    """Let the last eight channels carry colours, their negatives and constants, and the head read them."""
    last, constant = decoder.up_blocks[-1].resnets, 4.0
    last[0].conv_shortcut.weight.zero_()
    for colour in range(3):
        _copy(last[0].conv_shortcut, colour, colour)
        _copy(last[0].conv_shortcut, colour + 3, colour, -1)
    last[-1].conv2.bias[6], last[-1].conv2.bias[7] = constant, -constant
    decoder.conv_norm_out.weight.fill_(math.sqrt((2 * constant**2 + 2) / WIDTHS[0]))
    decoder.conv_out.weight.zero_(), decoder.conv_out.bias.zero_()
    for colour in range(3):
        _copy(decoder.conv_out, colour, colour)
        _copy(decoder.conv_out, colour, colour + 3, -1)


def picture_latents(pictures: torch.Tensor) -> torch.Tensor:
    """Return scaled latents [B, 4, h, w] of pictures [B, 3, H, W] in -1..1, without running the encoder."""
    means = functional.avg_pool2d(pictures, 8) * SCALE
    borders = torch.zeros_like(means[:, :1])
    borders[..., 0] -= 0.5
    borders[..., -1] += 0.5
    borders[..., 0, :] -= 1
    borders[..., -1, :] += 1
    return torch.cat([means, borders], dim=1)
