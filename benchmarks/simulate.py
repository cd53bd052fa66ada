"""Simulation of runs: what every planned phase needs of a card, beside what its plan says; without a card.

    python benchmarks/simulate.py [--only TEXT ...] [--all-blocks] [--json FILE]

Our own run code works on the real classes at their real sizes, on tensors without numbers (`simulated_card`). What it
allocates is then replayed through a model of torch's caching allocator (`caching_allocator`), under smaller and
smaller limits until it runs out of memory: with expandable segments, as a run asks for on Linux; with large blocks
unsplit, as it asks for on Windows; and as torch does by itself. Exits with 1 where a plan sets less aside than its
phase needs, or, with expandable segments, over 5 % more beside the 192 MiB that it adds for every phase.

Of a video transformer's blocks, which are alike, the first six pairs run, of tiles those of a shorter video;
--all-blocks runs everything. Workspaces of cuDNN are not in it: no simulation tells what its kernels take.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
if "piying" not in sys.modules:
    sys.path.insert(0, str(HERE.parent / "tests"))
    import conftest  # noqa: F401 - loads the pack under the name piying

import torch  # noqa: E402
from caching_allocator import MIB, least_reserved, live_peak  # noqa: E402
from machine import command, describe, write_json  # noqa: E402
from piying.core.catalog.component_sizes import listed_components  # noqa: E402
from piying.core.catalog.installed_model import built_in  # noqa: E402
from piying.core.checkpoints.assemble import assemble  # noqa: E402
from piying.core.checkpoints.load import empty_module  # noqa: E402
from piying.core.executor import tensor_cache  # noqa: E402
from piying.core.executor.execute_plan import Meter  # noqa: E402
from piying.core.families.diffusion_model import ModelParts  # noqa: E402
from piying.core.families.image_vae import decode_phase  # noqa: E402
from piying.core.families.registry import FAMILIES as ALL_FAMILIES  # noqa: E402
from piying.core.files.dtypes import torch_dtype  # noqa: E402
from piying.core.files.stored_tensor import StoredTensor  # noqa: E402
from piying.core.host.headless import HeadlessHost  # noqa: E402
from piying.core.planner.cost import FP32_SLOWDOWN, Choice, cost  # noqa: E402
from piying.core.planner.machine import ALLOCATOR_BYTES, WORKSPACES, Allocator, Machine, synthetic  # noqa: E402
from piying.core.planner.phases import Component, Phase  # noqa: E402
from piying.core.planner.plan import plan  # noqa: E402
from piying.core.planner.plan_types import PhasePlan  # noqa: E402
from piying.core.quantization.registry import weight_format  # noqa: E402
from piying.core.quantization.scaled_tensor import ScaledTensor  # noqa: E402
from published_models import CONFIGURATIONS  # noqa: E402
from simulated_card import CUDA, Count, SimulatedCard  # noqa: E402

GIB = 2**30
FAMILIES = {family.key: family for family in ALL_FAMILIES}
CARDS, MEMORIES = (4, 6, 8, 12, 16, 24, 80), (16, 64)
ALLOCATORS: dict[Allocator, dict[str, Any]] = {
    "expandable": {"expandable": True},
    "unsplit": {"expandable": False, "max_split_size": 64 * MIB},
    "default": {"expandable": False},
}
SCALED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}  # the values of what plans cast to, beside a scale per row
TOLERANCE = 1.05  # of what a plan sets aside, beside the bytes that are the same for all phases
PAIRS = 6  # main blocks that are run, with their VACE blocks
TILED_FRAMES = 9  # of videos in tiles: one tile is like another, and a later latent frame like the one before
LARGEST_SIDE = 2048  # of images; there their VAE works in tiles on small cards
CHAT_TOKENS, ANSWER_TOKENS = 512, 16  # of a prompt model: one pass for a token is like another
STEPS = 3  # the scheduler then holds all of the history that it keeps
PROMPT = "A red kite over the sea. " * 80

# {model of the manifest: its components' names there}
PARTS: dict[str, dict[str, str]] = {
    "1.3b": {"transformer": "wan-vace-1.3b", "text_encoder": "umt5-xxl", "vae": "wan-vae"},
    "14b": {"transformer": "wan-vace-14b", "text_encoder": "umt5-xxl", "vae": "wan-vae"},
    "hunyuan": {
        "transformer": "hunyuan-dit-1.2",
        "text_encoder": "chinese-clip",
        "text_encoder_2": "mt5-xl",
        "vae": "hunyuan-vae",
    },
    "z-image": {"transformer": "z-image", "text_encoder": "qwen3-4b", "vae": "flux-vae"},
    "qwen3-0.6b": {"prompt_model": "qwen3-0.6b"},
    "qwen3-4b": {"prompt_model": "qwen3-4b"},
}


class Weight(StoredTensor):
    """A weight of a file that is not there; like one that is mapped, it is no copy where it keeps its type."""

    is_view = True

    def __init__(self, card: SimulatedCard, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._card, self.shape, self.dtype = card, shape, dtype

    def read(self) -> torch.Tensor:
        """Return it without numbers."""
        with self._card.fake:
            return torch.empty(self.shape, dtype=self.dtype)


@dataclass(frozen=True)
class SimulatedParts(ModelParts):
    """A model's parts without numbers, put together by the code that reads files.

    Attributes:
        card: where they will be.
        named: {part: its name in the manifest}.
        lora_rank: the rank of a LoRA on every Linear layer of the blocks; 0 for none.
        all_blocks: whether blocks that are like others run too.
    """

    card: SimulatedCard | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    lora_rank: int = 0
    all_blocks: bool = False

    def identity(self, part: str) -> str:
        """Return its name: nothing is kept under it."""
        return part

    def load(self, part: str, choice: PhasePlan) -> Any:
        """Return the part in simulated host memory, stored as the plan says."""
        from piying.core.lora.additions import LowRank, add
        from piying.core.quantization.casting import is_linear, use_native_matmul

        assert self.card is not None
        rules, dtype = self.family.rules[part], torch_dtype(choice.compute)
        config = CONFIGURATIONS[self.named[part]]
        spec = next(one for one in self.family.components if one.name == part)
        # Of a text encoder's file, which may be a larger model's, the family names the class.
        named = spec.model_types.get(config.get("model_type", ""), config.get("_class_name"))
        module = empty_module(named or config["architectures"][0], config, part)
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in module.named_parameters():
            shape = tuple(tensor.shape)
            tensors[name] = Weight(self.card, shape, dtype)
            if weight_format(choice.storage) and not rules.why_dense(name, shape):
                values = Weight(self.card, shape, SCALED[choice.storage])
                tensors[name] = ScaledTensor(values, Weight(self.card, (shape[0], 1), torch.float32))
        assembly = "piying.core.checkpoints.assemble"
        # A fake mode is of one thread: no tensor is large enough for another.
        with mock.patch(f"{assembly}.require_finite", lambda *_: None), mock.patch(f"{assembly}.PIECE", sys.maxsize):
            assemble(module, tensors, part, dtype=dtype, rules=rules, storage=None)
        for name, layer in module.named_modules():
            if self.lora_rank and part == "transformer" and rules.block_of(f"{name}.") and is_linear(layer):
                sizes = (self.lora_rank, layer.in_features), (layer.out_features, self.lora_rank)
                add(layer, LowRank(*(Weight(self.card, size, dtype).read() for size in sizes), 1.0))
        use_native_matmul(module, choice.native_matmul)
        if part == "transformer" and hasattr(module, "vace_blocks") and not self.all_blocks:
            _shorten(module, resident=choice.placement == "resident")
        return module


def _shorten(transformer: Any, *, resident: bool) -> None:
    """Leave the first blocks to run; the weights of the others stay beside them where all are on the card."""
    layers = [layer for layer in transformer.config["vace_layers"] if layer < PAIRS]
    if resident:
        transformer.idle = torch.nn.ModuleList([*transformer.blocks[PAIRS:], *transformer.vace_blocks[len(layers) :]])
    transformer.blocks = transformer.blocks[:PAIRS]
    transformer.vace_blocks = transformer.vace_blocks[: len(layers)]
    transformer.register_to_config(vace_layers=layers)


class SimulatedMeter(Meter):
    """Counts what a phase does, in place of measuring it."""

    def __init__(self, card: SimulatedCard) -> None:
        super().__init__(CUDA)
        self._card = card
        self.found: Count | None = None

    @contextmanager
    def phase(self, choice: PhasePlan) -> Iterator[None]:
        """Count what happens inside the block."""
        gc.collect()
        with self._card.counting() as self.found:
            yield


@dataclass(frozen=True)
class Row:
    """A run to plan and to simulate.

    Attributes:
        title: for people.
        family: key of its model family.
        parts: key of `PARTS`.
        model: of the manifest, which says how its weights are stored.
        work: what it has to do.
        settings: of the request.
        lora_rank: see `SimulatedParts`.
    """

    title: str
    family: str
    parts: str
    model: str
    work: Any
    settings: Mapping[str, Any]
    lora_rank: int = 0

    def phases(self) -> tuple[Phase, ...]:
        """Return what the planner is given."""
        components: Mapping[str, Component] = listed_components(self.model)
        if self.lora_rank:
            transformer = components["transformer"]
            # As a LoRA file says of each block: two factors on each of its ten Linear layers of hidden × hidden or
            # hidden × inner (`component_sizes.with_loras`).
            added = self.lora_rank * (18 * transformer.hidden + 2 * transformer.inner)
            blocks = tuple(replace(block, kept=block.kept + added) for block in transformer.blocks)
            components = {**components, "transformer": replace(transformer, blocks=blocks)}
        return FAMILIES[self.family].phases(components, self.work)


def rows() -> list[Row]:
    """Return the rows of the planning table, and those of tasks beside it."""
    from piying.core.hunyuan_dit.phases import ImageWork
    from piying.core.prompting.phases import PromptWork
    from piying.core.wan.phases import VideoWork
    from piying.core.z_image.phases import ZImageWork

    found = []
    models = (
        ("1.3B", "1.3b", "wan2.1-vace-1.3b"),
        ("14B", "14b", "wan2.1-vace-14b"),
        ("14B FP8 files", "14b", "wan2.1-vace-14b-fp8"),
    )
    tasks: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "": ({}, {}),
        "cfg 1": ({"cfg": 1.0}, {"cfg": 1.0}),
        "4 references": ({"references": 4}, {}),
        "step cache": ({"step_cache": True}, {"step_cache": 0.1}),
        "batched": ({"batch_cfg": True}, {"batch_cfg": True}),
    }
    for title, parts, model in models:
        for width, height in ((832, 480), (1280, 720)):
            for task, (work, settings) in tasks.items():
                found.append(
                    Row(
                        ", ".join(filter(None, (f"VACE {title}", f"{width}×{height}", task))),
                        "wan_vace",
                        parts,
                        model,
                        VideoWork(width, height, 81, **work),
                        {"width": width, "height": height, "num_frames": 81, **settings},
                    )
                )
            found.append(
                replace(found[-len(tasks)], title=f"{found[-len(tasks)].title}, LoRA of rank 64", lora_rank=64)
            )
    for side in (1024, LARGEST_SIDE):
        size = {"width": side, "height": side}
        title = f"{side}×{side}"
        images = ImageWork(side, side)
        found.append(Row(f"Hunyuan-DiT, {title}", "hunyuan_dit", "hunyuan", "hunyuan-dit-v1.2", images, size))
        edit = ZImageWork(side, side, has_image=True)
        found.append(Row(f"Z-Image, {title}, image to image", "z_image", "z-image", "z-image-turbo", edit, size))
        guided = ZImageWork(side, side, cfg=5.0)
        with_cfg = {**size, "cfg": 5.0}
        found.append(Row(f"Z-Image, {title}, cfg 5", "z_image", "z-image", "z-image-turbo-bf16", guided, with_cfg))
    for model, title in (("qwen3-0.6b", "Qwen3 0.6B"), ("qwen3-4b", "Qwen3 4B")):
        chat = PromptWork(prompt_tokens=CHAT_TOKENS, max_new_tokens=ANSWER_TOKENS)
        found.append(Row(f"{title}, {ANSWER_TOKENS} tokens", "prompt", model, model, chat, {"width": 0}))
    return found


def simulate(row: Row, choice: PhasePlan, *, all_blocks: bool = False) -> Count:
    """Return what a phase of a run does on a card when it is run as chosen."""
    card = SimulatedCard()
    family = FAMILIES[row.family]
    with tempfile.TemporaryDirectory() as scratch:
        host = HeadlessHost(chosen_device="cpu", cache=Path(scratch))
        host.device = lambda: CUDA  # type: ignore[method-assign]
        found = built_in(row.family if row.family in ("hunyuan_dit", "prompt") else "wan_vace")
        if row.family == "z_image":
            found = replace(found, parts={"tokenizer": (built_in("prompt").path,)})
        parts = SimulatedParts(
            family, found, host, card=card, named=PARTS[row.parts], lora_rank=row.lora_rank, all_blocks=all_blocks
        )
        meter = SimulatedMeter(card)
        with ExitStack() as stack:
            for name in ("get", "put"):
                stack.enter_context(mock.patch.object(tensor_cache.TensorCache, name, lambda *_: None))
            stack.enter_context(mock.patch("piying.core.wan.video_run.digest", lambda _: ""))
            stack.enter_context(card.inserted())
            RUNS[row.family](row, parts, host, meter, choice)
    assert meter.found is not None
    gc.collect()
    return meter.found


def _run_wan(row: Row, parts: SimulatedParts, host: Any, meter: Meter, choice: PhasePlan) -> None:
    from piying.core.wan.attention import Attention
    from piying.core.wan.conditioning import TaskCache, VACEInputs
    from piying.core.wan.model import WanModel
    from piying.core.wan.request import WanRequest
    from piying.core.wan.run import VACERun
    from piying.core.wan.step_cache import StepCache
    from piying.core.wan.task.canvas import Canvas
    from piying.core.wan.video_run import Expert

    card = parts.card
    assert card is not None
    request = WanRequest(PROMPT, **{**row.settings, "steps": STEPS})
    frames, high, wide = request.num_frames, request.height // 8, request.width // 8
    with card.fake:
        video = torch.empty(frames, request.height, request.width, 3)
        references = tuple(torch.empty(3, *video.shape[1:3]) for _ in range(row.work.references))
        inputs = VACEInputs(Canvas(video, torch.empty(video.shape[:3], dtype=torch.bool)), references)
        latents = 1 + (frames - 1) // 4
        run = VACERun(
            WanModel(parts),
            request,
            host,
            inputs=inputs,
            reporter=host,
            meter=meter,
            attention=Attention(None, ""),
            cache=StepCache(request.step_cache) if request.step_cache else None,
            embeds=[torch.empty(1, 512, 4096, dtype=torch.bfloat16) for _ in range(2 if request.cfg > 1 else 1)],
            control=torch.empty(1, 96, latents + len(references), high, wide),
        )
        made = torch.empty(1, 16, latents, high, wide)
    run.colours = torch.zeros(17, 3)
    if choice.phase == "encode":
        run._encode(choice)
    elif choice.phase == "condition":
        run._encode_task(choice, TaskCache.open(host.cache_folder(), {}))
    elif choice.phase == "sample":
        run._sample([Expert(choice, request, request.taken)])
    else:
        run._decode(choice, made)


def _run_hunyuan(row: Row, parts: SimulatedParts, host: Any, meter: Meter, choice: PhasePlan) -> None:
    from piying.core.hunyuan_dit.request import ImageRequest
    from piying.core.hunyuan_dit.run import ENCODERS, HunyuanDiTModel, ImageRun

    card = parts.card
    assert card is not None
    request = ImageRequest(PROMPT, **{**row.settings, "steps": STEPS})
    run = ImageRun(HunyuanDiTModel(parts), request, host, meter, colours=torch.zeros(5, 3))
    with card.fake:
        for encoder, width in zip(ENCODERS, (1024, 2048), strict=True):
            one = {
                "states": torch.empty(1, encoder.tokens, width, dtype=torch.bfloat16),
                "mask": torch.empty(1, encoder.tokens, dtype=torch.long),
            }
            run.texts[encoder.part] = [one, one]
        latents = torch.empty(1, 4, request.height // 8, request.width // 8)
    if choice.phase.startswith("encode"):
        run._encode(next(one for one in ENCODERS if one.phase == choice.phase), choice)
    elif choice.phase == "sample":
        run._sample(choice, choice)
    else:
        decode_phase(parts, choice, meter, latents)


def _run_z_image(row: Row, parts: SimulatedParts, host: Any, meter: Meter, choice: PhasePlan) -> None:
    from piying.core.z_image.request import ZImageRequest
    from piying.core.z_image.run import ZImageRun

    card = parts.card
    assert card is not None
    request = ZImageRequest(PROMPT, **{**row.settings, "steps": STEPS})
    with card.fake:
        picture = torch.empty(1, 3, request.height, request.width)
        latents = torch.empty(1, 16, request.height // 8, request.width // 8)
        texts = [{"states": torch.empty(512, 2560, dtype=torch.bfloat16)}] * (2 if request.cfg > 1 else 1)
    run = ZImageRun(parts, request, host, meter, texts=texts, colours=torch.zeros(17, 3))
    if choice.phase == "encode":
        run._encode(choice)
    elif choice.phase == "condition":
        run._condition(choice, picture, torch.bfloat16)
    elif choice.phase == "sample":
        run._sample(choice, choice)
    else:
        decode_phase(parts, choice, meter, latents)


def _run_prompt(row: Row, parts: SimulatedParts, host: Any, meter: Meter, choice: PhasePlan) -> None:
    from piying.core.prompting import generation, sampling
    from piying.core.prompting.local_model import PromptRun
    from piying.core.prompting.messages import Chat
    from piying.core.prompting.request import ExpandRequest

    class SimulatedRun(PromptRun):
        """Generates as many tokens as it may: no number tells where the answer ends."""

        def _load(self, choice: PhasePlan, processor: Any) -> Any:
            model, left = parts.load("prompt_model", choice), iter(range(row.work.max_new_tokens))
            model._has_unfinished_sequences = lambda *_, **__: next(left, None) is not None
            return model

    found = built_in("prompt")
    words = PROMPT.split()
    chat, tokens = Chat("", ""), generation.load_processor(found).tokenizer
    while len(tokens(chat.system).input_ids) < row.work.prompt_tokens:
        chat = replace(chat, system=" ".join([chat.system, *words[:6]]))
    request = ExpandRequest("", max_new_tokens=row.work.max_new_tokens)
    run = SimulatedRun(
        found=found,
        use=lambda generate: generate(chat, None, request).text,
        host=host,
        meter=meter,
        compile_step=False,
        stays_packed=False,
    )
    made: Any = SimpleNamespace(phase=lambda _name: choice)
    # A build of torch without CUDA has no generators to keep; scores are judged by numbers.
    with (
        mock.patch.object(torch.random, "fork_rng", lambda **_: nullcontext()),
        mock.patch.object(sampling, "_check_logits", lambda _tokens, logits: logits),
    ):
        run.attempt(made)


RUNS: dict[str, Callable[..., None]] = {
    "wan_vace": _run_wan,
    "hunyuan_dit": _run_hunyuan,
    "z_image": _run_z_image,
    "prompt": _run_prompt,
}


@dataclass(frozen=True)
class Case:
    """A phase, run in one of the ways that plans choose.

    Attributes:
        row: the run; of tiles a shorter video's.
        phase: what the planner is given.
        choice: the way.
    """

    row: Row
    phase: Phase
    choice: PhasePlan

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others: rows share phases."""
        task = (self.row.title, self.phase.flops) if self.choice.phase == "sample" else ()
        return self.choice.component, self.choice.key, self.choice.vram, self.row.settings["width"], *task


def cases(some: list[Row], cards: Iterable[int] = CARDS, *, all_blocks: bool = False) -> list[Case]:
    """Return the ways in which plans for cards of all sizes run the phases of rows, each once."""
    found: dict[tuple[Any, ...], Case] = {}
    for row, card, ram, allocator in product(some, cards, MEMORIES, ALLOCATORS):
        newer = synthetic(card, ram, allocator)
        # Cards before 2022 multiply in no format: what is stored in one there is unpacked.
        for machine in (newer, replace(newer, native_flops={})):
            made = plan(row.phases(), machine)
            for choice in made.phases if made.fits else ():
                if choice.placement != "cpu":
                    case = _case(row, choice, synthetic(card, ram), all_blocks=all_blocks)
                    found.setdefault(case.key, case)
    return list(found.values())


def _case(row: Row, choice: PhasePlan, machine: Machine, *, all_blocks: bool) -> Case:
    if choice.variant == "tiled" and row.family == "wan_vace" and not all_blocks:
        row = replace(
            row,
            title=f"{row.title}, {TILED_FRAMES} frames",
            work=replace(row.work, num_frames=TILED_FRAMES),
            settings={**row.settings, "num_frames": TILED_FRAMES},
        )
    phase = next(one for one in row.phases() if one.name == choice.phase)
    variant = next(one for one in phase.variants if one.name == choice.variant)
    way = Choice(choice.compute, choice.storage, choice.placement, variant, choice.native_matmul)
    return Case(row, phase, cost(phase, way, machine))


@dataclass(frozen=True)
class Finding:
    """A plan beside its simulation; sizes in bytes.

    Attributes:
        title, way: of the case.
        planned, live: tensors on the card at once: as planned, as simulated.
        set_aside: by allocator, what a plan wants of the card beside cuDNN's allowance.
        needed: by allocator, the smallest limit under which the phase runs.
        planned_flops, flops: operations of the part that was run.
        copied: bytes to the card in that part.
        seconds: those that arithmetic and copying take at least on the typical card; what takes longer decides.
    """

    title: str
    way: str
    planned: int
    live: int
    set_aside: dict[str, int]
    needed: dict[str, int]
    planned_flops: float
    flops: int
    copied: int
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What is wrong with the plan."""
        found = []
        for name, needed in self.needed.items():
            aside = self.set_aside[name]
            if aside < needed:
                found.append(f"{name}: {(needed - aside) / MIB:.0f} MiB too little")
            elif name == "expandable" and aside - ALLOCATOR_BYTES > TOLERANCE * needed:
                found.append(f"{name}: {(aside - needed) / MIB:.0f} MiB too much")
        return found


def examine(case: Case, *, all_blocks: bool = False) -> Finding:
    """Simulate a case, and compare."""
    count = simulate(case.row, case.choice, all_blocks=all_blocks)
    steps = STEPS if case.choice.phase == "sample" else case.phase.passes
    run = 1.0
    if case.row.family == "wan_vace" and case.choice.phase == "sample" and not all_blocks:
        layers = CONFIGURATIONS[PARTS[case.row.parts]["transformer"]]["vace_layers"]
        run = (PAIRS + sum(layer < PAIRS for layer in layers)) / len(case.phase.component.blocks)
    factor = next(one.time_factor for one in case.phase.variants if one.name == case.choice.variant)
    machine = synthetic(24)
    slower = FP32_SLOWDOWN if case.choice.compute == "fp32" else 1
    return Finding(
        title=case.row.title,
        way=case.choice.key,
        planned=case.choice.vram,
        live=live_peak(count.trace),
        set_aside={name: _set_aside(case, name) for name in ALLOCATORS},
        needed={name: least_reserved(count.trace, **settings) for name, settings in ALLOCATORS.items()},
        planned_flops=case.phase.flops * factor * steps * run,
        flops=count.flops,
        copied=count.copied,
        seconds=max(slower * count.flops / machine.bf16_flops, count.copied / machine.pcie),
    )


def _set_aside(case: Case, allocator: Allocator) -> int:
    way, machine = case.choice, synthetic(24, allocator=allocator)
    variant = next(one for one in case.phase.variants if one.name == way.variant)
    choice = Choice(way.compute, way.storage, way.placement, variant, way.native_matmul)
    return cost(case.phase, choice, machine).room - WORKSPACES


def main() -> int:
    """Read the options; simulate, print and write; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only rows and phases with such names")
    parser.add_argument("--all-blocks", action="store_true", help="run blocks that are alike, and all tiles")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    logging.getLogger("piying").setLevel(logging.ERROR)  # prompts are too long on purpose
    print("GiB; set aside and needed: with expandable segments / large blocks unsplit / torch's default.")
    print("Workspaces of cuDNN are not counted.")
    print(f"{'plan':>7}{'live':>7}  {'set aside':<23}{'needed':<23}{'TFLOP, plan':>12}{'copied':>8}{'s':>7}")
    found, title = [], ""
    for case in cases(rows(), all_blocks=options.all_blocks):
        if not any(text in f"{case.row.title} {case.choice.key}" for text in options.only):
            continue
        one = examine(case, all_blocks=options.all_blocks)
        found.append(one)
        if one.title != title:
            title = one.title
            print(f"-- {title}")
        asides, needs = (
            " / ".join(f"{size / GIB:5.2f}" for size in sizes.values()) for sizes in (one.set_aside, one.needed)
        )
        print(
            f"{one.planned / GIB:7.2f}{one.live / GIB:7.2f}  {asides:<23}{needs:<23}{one.flops / 1e12:6.0f}"
            f"{one.planned_flops / 1e12:6.0f}{one.copied / GIB:8.1f}{one.seconds:7.1f}  {one.way}"
            f"{'  FAULT ' + ', '.join(one.faults) if one.faults else ''}",
            flush=True,
        )
    faulty = sum(bool(one.faults) for one in found)
    spent = round(time.process_time())
    print(f"{len(found)} phases, {faulty} with faults; {spent} s of processor time.")
    if options.json is not None:
        about = describe("cpu") | {"command": command("simulate.py", sys.argv[1:], {str(options.json): "FILE"})}
        rows_found = [asdict(one) | {"faults": one.faults} for one in found]
        write_json(options.json, about | {"processor_seconds": spent, "rows": rows_found})
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
