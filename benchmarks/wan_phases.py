"""Benchmark of the phases around the denoising steps: loading, the VAE, and phase changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import CONTEXT, GB, clock, hold_to, is_card, peak, seconds, settle
from published_models import random_model
from wan_models import CONFIGS, SIZES, Shape, empty, inputs, weights
from wan_steps import core

Row = dict[str, Any]


def activations(model: str, size: str) -> Row:
    """Return the peak bytes of a prediction beside the weights, counted on the meta device, in bf16.

    Attention counts as its output alone: what a card's kernels need beside it is small and their own.
    """
    predict = core("wan.transformer").predict
    made = empty(model).to("meta", torch.bfloat16)
    given = inputs(Shape(model, size), torch.bfloat16, "meta")
    one, scale = given | {"embeds": given["embeds"][:1]}, torch.ones(len(made.config.vace_layers), device="meta")

    def plain() -> Any:
        control = {"control_hidden_states": given["control"], "control_hidden_states_scale": scale.bfloat16()}
        return made(given["latents"], given["timestep"], given["embeds"][0], **control, return_dict=False)

    attention = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda query, **_: torch.empty_like(query)
    try:
        with torch.no_grad():
            return {
                "diffusers": peak(plain, "meta"),
                "one prompt": peak(lambda: predict(made, **one, scale=scale), "meta"),
                "two prompts": peak(lambda: predict(made, **given, scale=scale), "meta"),
            }
    finally:
        torch.nn.functional.scaled_dot_product_attention = attention


def load(folder: Path, device: str, dtype: torch.dtype) -> list[tuple[str, Callable[[], Any]]]:
    """Return ways of getting a transformer from a file to the device, ready to compute."""
    from diffusers import WanVACETransformer3DModel

    loading = core("checkpoints.load")
    fp8 = {"storage": "fp8", "rules": core("wan.family").WAN_VACE.rules["transformer"]}

    def there(module: torch.nn.Module) -> torch.nn.Module:
        module.to(device)
        for tensor in module.parameters():
            tensor.flatten().view(torch.uint8)[::4096].sum()  # every page has been read, mapped files too
        return module

    return [
        (
            "diffusers, from_pretrained",
            lambda: there(WanVACETransformer3DModel.from_pretrained(folder, dtype=dtype, local_files_only=True)),
        ),
        ("Piying", lambda: there(loading.load_component("transformer", folder, dtype=dtype))),
        ("Piying, cast to fp8", lambda: there(loading.load_component("transformer", folder, dtype=dtype, **fp8))),
    ]


def write_transformer(model: str, folder: Path, dtype: torch.dtype, device: str) -> int:
    """Write a transformer's folder; return its bytes."""
    from safetensors.torch import save_file

    state = weights(model, dtype, device)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "WanVACETransformer3DModel", **CONFIGS[model]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return sum(tensor.nbytes for tensor in state.values())


def measure_load(model: str, folder: Path, device: str, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Return rows of seconds from file to device; the file is in the system's cache from the second round on."""
    size = write_transformer(model, folder, dtype, device)
    ways = load(folder, device, dtype)
    times: dict[str, list[float]] = {name: [] for name, _ in ways}
    for _ in range(rounds + 1):
        for name, way in ways:
            settle(device)
            times[name].append(seconds(way, device))
    return [{"name": name, "bytes": size, "first": each[0], "seconds": each[1:]} for name, each in times.items()]


def vae_of(model: str) -> Any:
    """Return the built-in VAE for the toy, else one of the published shape with random weights, in fp32."""
    from diffusers import AutoencoderKLWan

    if model == "toy":
        path = core("catalog.installed_model").built_in("wan_vace").path / "vae"
        return AutoencoderKLWan.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return AutoencoderKLWan().eval()


def vae_ways(vae: Any, size: str, device: str) -> list[tuple[str, bool, Callable[[], Any]]]:
    """Return (name, tiled, call) of decoding and encoding a video."""
    width, height, frames = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    rows = (1, vae.config.z_dim, 1 + (frames - 1) // 4, height // 8, width // 8)
    latents = torch.randn(rows, generator=generator).to(device)
    video = torch.rand((1, 3, frames, height, width), generator=generator).to(device) * 2 - 1
    decode, condition = core("wan.decode"), core("wan.conditioning")

    def all_at_once() -> torch.Tensor:
        # In host memory, where ours come out.
        z = decode.denormalised(vae.config, latents.to(vae.device)).to(vae.dtype)
        return vae.decode(z, return_dict=False)[0].float().cpu()

    return [
        ("decode: diffusers", False, all_at_once),
        ("decode: Piying", False, lambda: decode.decode(vae, latents, tiled=False, on_step=lambda done: None)),
        ("decode: diffusers, tiled", True, all_at_once),
        ("decode: Piying, tiled", True, lambda: decode.decode(vae, latents, tiled=True, on_step=lambda done: None)),
        ("encode", False, lambda: condition.encode_video(vae, video)),
        ("encode, tiled", True, lambda: condition.encode_video(vae, video)),
    ]


def measure_vae(model: str, size: str, device: str, rounds: int, types: Sequence[str] = ("fp32",)) -> list[Row]:
    """Return rows of seconds and peaks, for each number type."""
    found: dict[str, Row] = {}
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    with torch.no_grad():
        for kind in types:
            vae = vae_of(model).to(device, dtypes[kind])
            for turn in range(rounds + 1):
                for name, tiled, call in vae_ways(vae, size, device):
                    row = found.setdefault(f"{name}, {kind}", {"name": f"{name}, {kind}", "seconds": []})
                    if "error" in row:
                        continue
                    (vae.enable_tiling if tiled else vae.disable_tiling)()
                    settle(device)
                    try:
                        took = seconds(call, device)
                        row["peak"] = row["peak"] if "peak" in row else peak(call, device)
                    except torch.OutOfMemoryError:
                        row["error"] = "out of memory"
                        continue
                    row["seconds"] += [took] if turn else []
    return list(found.values())


def write_pipeline(model: str, folder: Path, device: str) -> Path:
    """Return a whole model's folder: the built-in one for the toy, else one of published shapes, random weights."""
    built_in = core("catalog.installed_model").built_in("wan_vace").path
    if model == "toy":
        return Path(built_in)
    target = folder / "diffusers" / f"random-{model}"
    if target.is_dir():
        return target  # of the run before, under another cap
    # Under another name until it is whole: a run may be stopped while it writes.
    unfinished = folder / "unfinished" / f"random-{model}"
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(built_in / part, unfinished / part, dirs_exist_ok=True)
    shutil.copy(built_in / "model_index.json", unfinished)
    write_transformer(model, unfinished / "transformer", torch.bfloat16, device)
    vae_of(model).save_pretrained(unfinished / "vae")
    with torch.device(device):
        encoder = random_model("umt5-xxl").to(torch.bfloat16)
    encoder.cpu().save_pretrained(unfinished / "text_encoder")
    target.parent.mkdir(parents=True, exist_ok=True)
    return unfinished.rename(target)


def model_name(model: str) -> str:
    """Return the name on the loader of what `write_pipeline` writes."""
    return "built-in" if model == "toy" else f"diffusers/random-{model}"


@dataclass(frozen=True)
class WholeRun:
    """A model and a video, on a device that may stand in for a smaller one.

    Attributes:
        folder: for the model and for what runs cache.
        cap: the smaller card's memory in GB of 2**30 bytes.
        runs: how many of `RUNS`.
        steps: of a run.
    """

    model: str
    size: str
    device: str
    folder: Path
    cap: float | None
    runs: int
    steps: int

    @property
    def video(self) -> dict[str, int]:
        """Return the arguments of a request and of diffusers' pipeline."""
        width, height, frames = SIZES[self.size]
        return {"width": width, "height": height, "num_frames": frames}


def measure_phases(case: WholeRun, rounds: int, ways: Sequence[str]) -> list[Row]:
    """Return rows of whole runs: the first, one with another prompt, one with the same prompt."""
    path = write_pipeline(case.model, case.folder, case.device)
    rows: list[Row] = []
    for turn in range(rounds):
        for name, way in {"Piying": _our_runs, "diffusers": _their_runs}.items():
            if not any(text in name for text in ways):
                continue
            settle(case.device)
            hold_to(case.cap, case.device)
            row: Row = {"name": name, "round": turn}
            try:
                row |= way(path, case, case.folder / f"cache-{case.model}-{case.size}-{case.cap}-{turn}")
            except torch.OutOfMemoryError:
                row["error"] = "out of memory"
            finally:
                hold_to(None, case.device)
            rows.append(row)
    return rows


RUNS = (("first", "a red circle", 1), ("other prompt", "a blue square", 2), ("same prompt", "a blue square", 3))


def _our_runs(path: Path, case: WholeRun, cache: Path) -> Row:
    choose, request, host = core("catalog.selection"), core("wan.request"), core("host.headless")
    program = host.HeadlessHost(
        models=[path.parents[1]],
        chosen_device=case.device,
        cache=cache,
        # As a run on the whole of such a card finds it: what CUDA itself takes is neither planned with nor used.
        vram=None if case.cap is None else int(case.cap * GB) - CONTEXT,
    )
    handle = choose.ModelHandle(core("wan.family").WAN_VACE, model=model_name(case.model))
    core("executor.model_cache").evict_models()
    found: Row = {}
    peaks = []
    for run, prompt, seed in RUNS[: case.runs]:
        wanted = request.WanRequest(prompt, steps=case.steps, seed=seed, **case.video)
        begun = clock(case.device)
        _, record = core("wan.run").sample(handle, wanted, program)
        found[run] = clock(case.device) - begun
        found |= {"phases": record["seconds"], "plan": record["plan"], "estimated": record["predicted_seconds"]}
        # From the record: a run counts its peak anew in each phase, so torch's own is the last one's.
        peaks.append(record["peak_vram_gb"])
        found["planned"] = int(record["predicted_vram_gb"] * GB)
    return found | ({"peak": int(max(peaks) * GB)} if is_card(case.device) else {})


def _their_runs(path: Path, case: WholeRun, cache: Path) -> Row:
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    found: Row = {}
    begun = clock(case.device)
    dtype = torch.bfloat16 if is_card(case.device) else torch.float32
    pipeline = WanVACEPipeline.from_pretrained(path, dtype={"default": dtype, "vae": torch.float32})
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=16.0)
    pipeline.set_progress_bar_config(disable=True)
    if is_card(case.device):
        pipeline.enable_model_cpu_offload(device=case.device)
    for run, prompt, seed in RUNS[: case.runs]:
        pipeline(
            prompt=prompt,
            negative_prompt=core("wan.request").NEGATIVE_PROMPT,
            num_inference_steps=case.steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **case.video,
        )
        now = clock(case.device)
        found[run], begun = now - begun, now
    return found | ({"peak": torch.cuda.max_memory_allocated(case.device)} if is_card(case.device) else {})
