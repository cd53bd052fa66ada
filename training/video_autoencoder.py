"""The Wan autoencoder: its encoder is set by hand, exact and linear; only its decoder is trained.

A latent pixel is the mean colour of an 8×8 block. That is easy to model: any clip's latents are a
mix of two colours by a coverage map, so training never runs the encoder. It keeps two
frames of every four, 4t and 4t - 2, and adds three constant channels that say where a latent pixel
is: Wan's positions are relative, and something must tell a transformer where the borders are.

Everything between the layers that matter is switched off: residual branches end in zeros. The
normalisations cannot be, so one channel carries a large constant, beside which the others do not
change the norm; and SiLU is undone by pairs, since silu(y) - silu(-y) = y.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from torch.nn import functional

PICTURE_STD = 0.6  # of block colours in -1..1, about
LARGE = 724.0  # 128·√32: the constant that fixes the norm
VIDEO_CHANNELS = 9  # colours of frame 4t, of frame 4t - 2, columns, rows, first frame
SILU_OF_ONE = functional.silu(torch.tensor(1.0)).item()
# Channels inside the video encoder.
NOW, BEFORE, MINUS_NOW, MINUS_BEFORE = 0, 3, 6, 9
ONE, FIRST, CONSTANT = 12, 13, 14


def video_autoencoder() -> AutoencoderKLWan:
    """Return a Wan autoencoder with its encoder set and its decoder a copier of block colours."""
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=VIDEO_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        latents_mean=[0.0] * VIDEO_CHANNELS,
        latents_std=[PICTURE_STD] * 6 + [1.0] * 3,
    )
    with torch.no_grad():
        set_video_encoder(vae)
        start_video_decoder(vae)
    return vae


def set_video_encoder(vae: AutoencoderKLWan) -> None:
    """Set the encoder's weights by hand."""
    encoder = vae.encoder
    for weight in encoder.parameters():
        weight.zero_()
    _copy(encoder.conv_in, {0: 0, 1: 1, 2: 2})
    encoder.conv_in.bias[3:5] = 1  # the channels ONE and FIRST for as long as there are only eight
    narrow, wide, wider = (encoder.down_blocks[index] for index in (1, 3, 5))
    _shrink(narrow), _shrink(wide), _shrink(wider)
    keep = {index: index for index in range(5)}
    _copy(encoder.down_blocks[2].conv_shortcut, keep)
    _copy_in_time(wide.time_conv, {index: (index, 2) for index in range(4)})
    shortcut = encoder.down_blocks[4].conv_shortcut
    for start, sign in ((NOW, 1), (BEFORE, 1), (MINUS_NOW, -1), (MINUS_BEFORE, -1)):
        _copy(shortcut, {start + c: c for c in range(3)}, sign)
    _copy(shortcut, {ONE: 3, FIRST: 4})
    last = {c: (c, 2) for c in (*range(NOW, 3), *range(MINUS_NOW, MINUS_NOW + 3), ONE)}
    middle = {c: (c, 1) for c in (*range(BEFORE, 6), *range(MINUS_BEFORE, MINUS_BEFORE + 3))}
    _copy_in_time(wider.time_conv, last | middle)
    encoder.mid_block.resnets[1].conv2.bias[CONSTANT] = LARGE
    encoder.norm_out.gamma.fill_(LARGE / encoder.norm_out.scale)
    _read_latents(encoder.conv_out)
    _copy(vae.quant_conv, {index: index for index in range(2 * VIDEO_CHANNELS)}, clear=True)
    _copy(vae.post_quant_conv, {index: index for index in range(VIDEO_CHANNELS)}, clear=True)


def _read_latents(conv: nn.Conv3d) -> None:
    """Let the encoder's last convolution read blocks, borders and the first frame; no spread."""
    for plus, minus, out in ((NOW, MINUS_NOW, 0), (BEFORE, MINUS_BEFORE, 3)):
        for colour in range(3):
            conv.weight[out + colour, plus + colour, 2, 1, 1] = 1
            conv.weight[out + colour, minus + colour, 2, 1, 1] = -1
    # A constant minus its neighbour is nothing but at the border, where the neighbour is padding.
    one = 1 / SILU_OF_ONE
    conv.weight[6, ONE, 2, 1, 0], conv.weight[6, ONE, 2, 1, 2] = one, -one
    conv.weight[7, ONE, 2, 0, 1], conv.weight[7, ONE, 2, 2, 1] = one, -one
    conv.weight[8, FIRST, 2, 1, 1] = one
    conv.bias[VIDEO_CHANNELS:] = -30  # the logarithm of no variance


def _copy(conv: nn.Module, channels: dict[int, int], factor: float = 1, clear: bool = False) -> None:
    """Let a convolution copy channels, {to: from}, through the middle of its kernel (the last in time)."""
    if clear:
        conv.weight.zero_(), conv.bias.zero_()
    middle = (-1, *(size // 2 for size in conv.kernel_size[1:])) if conv.weight.ndim == 5 else (1, 1)
    if conv.weight.ndim == 4:
        middle = tuple(size // 2 for size in conv.kernel_size)
    for to, source in channels.items():
        conv.weight[(to, source, *middle)] = factor


def _copy_in_time(conv: nn.Conv3d, channels: dict[int, tuple[int, int]]) -> None:
    """Let a convolution over three frames copy channels, {to: (from, frame)}."""
    for to, (source, frame) in channels.items():
        conv.weight[to, source, frame, 0, 0] = 1


def _shrink(resample: nn.Module) -> None:
    """Let a down-sampler average 2×2 pixels of every channel (a constant stays one at the border)."""
    conv = resample.resample[1]
    for channel in range(conv.out_channels):
        conv.weight[channel, channel, :2, :2] = 0.25


def start_video_decoder(vae: AutoencoderKLWan) -> None:
    """Set the decoder to copy block colours, and time between the two frames it is given: a place to start."""
    decoder = vae.decoder
    for block in [*decoder.mid_block.resnets, *(r for up in decoder.up_blocks for r in up.resnets)]:
        block.conv2.weight.mul_(0.1)
    decoder.mid_block.attentions[0].proj.weight.mul_(0.1)
    decoder.conv_in.weight.mul_(0.1)
    _copy(decoder.conv_in, {index: index for index in range(VIDEO_CHANNELS)})
    first, second, third = (decoder.up_blocks[index].upsamplers[0] for index in range(3))
    # Half-frames: the first of two is frame 4t - 2, the second frame 4t.
    _clear(first.time_conv), _clear(second.time_conv)
    wide = first.time_conv.out_channels // 2
    for channel in range(wide):
        first.time_conv.weight[channel, (channel + 3) % 6 if channel < 6 else channel, 2, 0, 0] = 1
        first.time_conv.weight[wide + channel, channel, 2, 0, 0] = 1
        second.time_conv.weight[channel, channel, 1:, 0, 0] = 0.5
        second.time_conv.weight[wide + channel, channel, 2, 0, 0] = 1
    for resample in (first, second, third):
        _keep_first_channels(resample.resample[1])
    for up in decoder.up_blocks:
        shortcut = up.resnets[0].conv_shortcut
        if not isinstance(shortcut, nn.Identity):
            _keep_first_channels(shortcut)
    decoder.up_blocks[3].resnets[-1].conv2.bias[6] = 8
    decoder.norm_out.gamma.fill_(8 / decoder.norm_out.scale)
    _finish_video_decoder(decoder)


def _finish_video_decoder(decoder: nn.Module) -> None:
    """Let the last channels carry colours and their negatives, and the head put them together."""
    last = decoder.up_blocks[2].upsamplers[0].resample[1]
    _clear(last), _clear(decoder.conv_out)
    for colour in range(3):
        for channel, sign in ((colour, 1), (colour + 3, -1)):
            last.weight[channel, colour, 1, 1] = sign
            decoder.conv_out.weight[colour, channel, 2, 1, 1] = sign


def _keep_first_channels(conv: nn.Module) -> None:
    """Add a copy of the first channels to a convolution's small random weights."""
    conv.weight.mul_(0.1), conv.bias.zero_()
    _copy(conv, {index: index for index in range(min(conv.in_channels, conv.out_channels))})


def _clear(conv: nn.Module) -> None:
    conv.weight.zero_(), conv.bias.zero_()
