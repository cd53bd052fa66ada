"""Random weights of the published sizes, in the files that people have of them, written a piece of a tensor at a time.

    python benchmarks/real_weights.py /tmp/models vace-1.3b-fp16 umt5-xxl-fp8-scaled wan-vae

Names, shapes, number types, shards and places in a folder of models are those of the published files. Weights are
Gaussian with the standard deviation at which activations stay near 1, so that a run's numbers are finite ones.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from published_models import random_model

ROOT = Path(__file__).resolve().parents[1]
POOL = 4_194_301  # Gaussian numbers that all weights are cut from; a prime, so that no two rows of a matrix are alike
FP8_LARGEST, FP8_STD = 448.0, 112.0  # of scaled FP8 values: the largest of a layer is near 448
SCALE = ".scale_weight"
Q8_STD = 31.75  # of Q8_0's values: four deviations reach 127
Q4_STD = 4.61  # of 0 … 15, all as often
SHARD = 5 * 10**9  # bytes of a shard, as diffusers and transformers save by default
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RealFile:
    """A published file, or the folder of a component.

    Attributes:
        path: in a folder of models. One without a suffix is a folder: a configuration and shards.
        model: one of `published_models`.
        names: "diffusers" for those of the class, else "original" or "llama.cpp".
        type: "fp32", "fp16", "bf16", "fp8" as Kijai casts them (as they are), "fp8 scaled" as ComfyUI's files are,
            "Q8_0" or "Q4_K"; of packed ones all that is no matrix of a block is in fp16, in GGUF files fp32.
    """

    path: str
    model: str
    names: str
    type: str


HUNYUAN = "diffusers/HunyuanDiT-v1.2-Diffusers"
FILES = {
    "vace-1.3b-fp16": RealFile(
        "diffusion_models/wan2.1_vace_1.3B_fp16.safetensors", "wan-vace-1.3b", "original", "fp16"
    ),
    "vace-1.3b-fp8": RealFile("diffusion_models/wan2.1_vace_1.3B_fp8.safetensors", "wan-vace-1.3b", "original", "fp8"),
    "vace-1.3b-q4": RealFile("diffusion_models/wan2.1_vace_1.3B_Q4_K.gguf", "wan-vace-1.3b", "original", "Q4_K"),
    "vace-1.3b-bf16": RealFile(
        "diffusers/Wan2.1-VACE-1.3B-diffusers/transformer", "wan-vace-1.3b", "diffusers", "bf16"
    ),
    "vace-14b-fp8-scaled": RealFile(
        "diffusion_models/wan2.1_vace_14B_fp8_scaled.safetensors", "wan-vace-14b", "original", "fp8 scaled"
    ),
    "umt5-xxl-fp16": RealFile("text_encoders/umt5_xxl_fp16.safetensors", "umt5-xxl", "diffusers", "fp16"),
    "umt5-xxl-fp8-scaled": RealFile(
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "umt5-xxl", "diffusers", "fp8 scaled"
    ),
    "umt5-xxl-pth": RealFile("text_encoders/models_t5_umt5-xxl-enc-bf16.pth", "umt5-xxl", "original", "bf16"),
    "umt5-xxl-q8": RealFile("text_encoders/umt5-xxl-encoder-Q8_0.gguf", "umt5-xxl", "llama.cpp", "Q8_0"),
    "wan-vae": RealFile("vae/wan_2.1_vae.safetensors", "wan-vae", "original", "bf16"),
    "wan-vae-pth": RealFile("vae/Wan2.1_VAE.pth", "wan-vae", "original", "fp32"),
    "hunyuan-dit": RealFile(f"{HUNYUAN}/transformer", "hunyuan-dit-1.2", "diffusers", "fp16"),
    "hunyuan-bert": RealFile(f"{HUNYUAN}/text_encoder", "chinese-clip", "diffusers", "fp16"),
    "hunyuan-t5": RealFile(f"{HUNYUAN}/text_encoder_2", "mt5-xl", "diffusers", "bf16"),
    "hunyuan-vae": RealFile(f"{HUNYUAN}/vae", "hunyuan-vae", "diffusers", "fp16"),
    "qwen3-0.6b": RealFile("LLM/Qwen3-0.6B", "qwen3-0.6b", "diffusers", "bf16"),
    "qwen3-4b": RealFile("LLM/Qwen3-4B", "qwen3-4b", "diffusers", "bf16"),
}
# What a folder has beside the weights, from the built-in model whose tokenizer stands in for the real one.
BESIDE = {"diffusers/HunyuanDiT": "hunyuan_dit", "LLM": "prompt", "diffusers/Wan": "wan_vace"}


def write(file: RealFile, root: Path) -> int:
    """Write one file, or the folder of a component; return its bytes."""
    with torch.device("meta"):
        module = random_model(file.model)
    state = _stored(file, module)
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        _write_pth(path, state)
    elif path.suffix == ".gguf":
        _write_gguf(path, state, file.type)
    elif path.suffix == ".safetensors":
        _write_safetensors(path, state)
    else:
        _write_folder(path, module, state)
        _add_beside(root, file.path)
    return sum(one.stat().st_size for one in (path.iterdir() if path.is_dir() else [path]))


def _stored(file: RealFile, module: torch.nn.Module) -> Tensors:
    """Return the tensors of a file by name, on the meta device but for what is no weight."""
    from piying.tests.core.formats import gguf_writer, names, writers

    # As a file has them: what the class ties to another tensor is there once.
    state = dict(module.named_parameters()) | dict(_saved_buffers(module))
    if file.names == "original":
        original = {"umt5-xxl": names.umt5, "wan-vae": names.wan_vae}
        state = original.get(file.model, names.wan_transformer)(state)
    elif file.names == "llama.cpp":
        state = gguf_writer.renamed(state, gguf_writer.T5_NAMES)
    if file.type in TYPES and file.type != "fp8":
        return {name: tensor.to(TYPES[file.type]) for name, tensor in state.items()}
    if file.type in ("fp8", "fp8 scaled"):
        state = writers.plain_fp8(state) if file.type == "fp8" else writers.comfy_old(state)
        plain = {name for name, tensor in state.items() if tensor.dtype == torch.float32 and not name.endswith(SCALE)}
        state = {name: tensor.half() if name in plain else tensor for name, tensor in state.items()}
        return state | ({"spiece_model": _pieces()} if file.model == "umt5-xxl" else {})
    return state


def _saved_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = module.state_dict()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def _pieces() -> torch.Tensor:
    """Return a SentencePiece model of a few words, as ComfyUI's text encoders carry theirs."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    options = {"vocab_size": 50, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    text = ["a red circle moves right on a blue background", "a small boat"] * 5
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=written, minloglevel=2, **options)
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


def deviation(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation of a weight: of norms near 1, of matrices so that outputs are as inputs."""
    own = name.rpartition(".")[2]
    if own == "gamma" or (own == "weight" and len(shape) == 1):
        return 1.0, 0.05
    fan_in = prod(shape[1:])
    is_table = any(part in name for part in ("shared", "embeddings", "embed_tokens", "token_emb"))
    return 0.0, 1.0 if is_table else fan_in**-0.5 if own == "weight" and fan_in > 1 else 0.02


@lru_cache(maxsize=16)
def _pool(mean: float, std: float, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    return drawn.mul_(std).add_(mean).clamp_(-FP8_LARGEST, FP8_LARGEST).to(dtype)


def drawn(name: str, tensors: Tensors) -> Iterator[torch.Tensor]:
    """Yield the numbers of a tensor in its type, a piece at a time; which ones depends on its name."""
    tensor, layer = tensors[name], name.rpartition(".")[0]
    if not tensor.is_meta:
        yield tensor.contiguous().reshape(-1)
        return
    if name.endswith(SCALE):
        weight = f"{layer}.weight"
        yield torch.full((max(1, tensor.numel()),), deviation(weight, tuple(tensors[weight].shape))[1] / FP8_STD)
        return
    is_scaled = f"{layer}{SCALE}" in tensors and name.endswith(".weight")
    mean, std = (0.0, FP8_STD) if is_scaled else deviation(name, tuple(tensor.shape))
    yield from _pieces_of(_pool(mean, std, tensor.dtype), name, tensor.numel())


def _pieces_of(pool: torch.Tensor, name: str, count: int) -> Iterator[torch.Tensor]:
    start = zlib.crc32(name.encode()) % len(pool)
    while count > 0:
        piece = pool[start : start + count]
        yield piece
        start, count = 0, count - len(piece)


def _raw(pieces: Iterator[torch.Tensor]) -> Iterator[memoryview]:
    yield from (piece.contiguous().view(torch.uint8).numpy().data for piece in pieces)


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    from piying.core.files.dtypes import safetensors_names

    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = safetensors_names()[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            for raw in _raw(drawn(name, tensors)):
                file.write(raw)


def _write_folder(path: Path, module: Any, tensors: Tensors) -> None:
    """Write a component's configuration, its shards, and their index where there are several."""
    import diffusers

    path.mkdir(parents=True, exist_ok=True)
    is_diffusers = isinstance(module, diffusers.ModelMixin)
    stem = "diffusion_pytorch_model" if is_diffusers else "model"
    module.config.architectures = [type(module).__name__] if not is_diffusers else None
    module.save_config(path) if is_diffusers else module.config.save_pretrained(path)
    shards: list[Tensors] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(one.nbytes for one in shards[-1].values()) + tensor.nbytes > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write_safetensors(path / f"{stem}.safetensors", tensors)
        return
    table = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(path / file, shard)
        table |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(one.nbytes for one in tensors.values())}, "weight_map": table}
    (path / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _add_beside(root: Path, path: str) -> None:
    """Put tokenizers and the like of the built-in model beside a component's folder."""
    from piying.core.catalog.installed_model import BUILT_IN_ROOT

    family = next((name for start, name in BESIDE.items() if path.startswith(start)), None)
    if family is None:
        return
    built_in = BUILT_IN_ROOT / family
    folder = root / (path if path.startswith("LLM") else str(Path(path).parent))
    for one in built_in.iterdir():
        if one.is_dir() and one.name.startswith(("tokenizer", "scheduler")):
            shutil.copytree(one, folder / one.name, dirs_exist_ok=True)
        elif one.is_file() and one.suffix != ".safetensors" and one.name != "config.json":
            shutil.copy(one, folder / one.name)


def _write_pth(path: Path, tensors: Tensors) -> None:
    """Write PyTorch's format: torch writes an archive of the right size, and the numbers are put into their places."""
    from piying.core.files.pth_file import read_pth_header

    # Memory that is never touched is never there.
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    with torch.serialization.skip_data():
        torch.save(empty, path)
    with path.open("r+b") as file:
        for name, entry in read_pth_header(path).entries.items():
            file.seek(entry.start)
            for raw in _raw(drawn(name, tensors)):
                file.write(raw)


def _write_gguf(path: Path, tensors: Tensors, kind: str) -> None:
    """Write GGUF as its converters do: matrices packed, the rest in fp32, five dimensions folded into two."""
    from piying.core.files.gguf_blocks import TYPES as KINDS
    from piying.tests.core.formats.gguf_writer import ALIGNMENT, text, value_of

    numbers = {one.name: number for number, one in KINDS.items()}
    values = {"general.architecture": "t5encoder" if path.parent.name == "text_encoders" else "wan"}
    values |= {f"comfy.gguf.orig_shape.{n}": list(t.shape) for n, t in tensors.items() if t.ndim > 4}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        number, raw = value_of(value)
        head += text(name) + struct.pack("<I", number) + raw
    ends, end = {}, 0
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape) if tensor.ndim < 5 else (tensor.shape[0], prod(tensor.shape[1:]))
        is_packed = tensor.ndim == 2 and shape[1] % KINDS[numbers[kind]].weights == 0
        one = KINDS[numbers[kind if is_packed else "F32"]]
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", numbers[one.name], end)
        ends[name] = (one, end)
        end += -(-tensor.numel() // one.weights * one.bytes // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        start = file.tell()
        for name, (one, place) in ends.items():
            file.seek(start + place)
            if one.name == "F32":
                pieces = drawn(name, tensors)
            else:
                std = deviation(name, tuple(tensors[name].shape))[1]
                count = tensors[name].numel() // one.weights * one.bytes
                pieces = _pieces_of(PACKERS[one.name](std), name, count)
            for raw in _raw(pieces):
                file.write(raw)
        file.truncate(start + end)


def _q8_0(std: float) -> torch.Tensor:
    """Return bytes of blocks: d in fp16, 32 values in 8 bits."""
    values = torch.randn(POOL // 32, 32).mul_(Q8_STD).clamp_(-127, 127).to(torch.int8).view(torch.uint8)
    return torch.cat([_half(std / Q8_STD).expand(len(values), 2), values], dim=1)


def _q4_k(std: float) -> torch.Tensor:
    """Return bytes of blocks: d and m in fp16, eight scales and minima that are all 32, 256 values in 4 bits."""
    scale = std / Q4_STD / 32
    head = torch.cat([_half(scale), _half(7.5 * scale), torch.tensor([160] * 8 + [0] * 4, dtype=torch.uint8)])
    values = torch.randint(0, 256, (POOL // 256, 128), dtype=torch.uint8)
    return torch.cat([head.expand(len(values), -1), values], dim=1)


def _half(number: float) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.float16).view(torch.uint8)


PACKERS = {"Q8_0": _q8_0, "Q4_K": _q4_k}


def load_pack() -> None:
    """Load the pack under its name."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401


def main() -> None:
    """Write the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of models, as ComfyUI has it")
    parser.add_argument("names", nargs="+", choices=list(FILES), metavar="NAME", help=", ".join(FILES))
    options = parser.parse_args()
    load_pack()
    for name in options.names:
        print(f"{name}: {write(FILES[name], options.folder) / 1e9:.2f} GB, {FILES[name].path}", flush=True)


if __name__ == "__main__":
    main()
