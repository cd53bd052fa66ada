"""Many runs on several ranks in one start: `ranks_driver.py MODELS OUT=CASE,… …`, with as many ranks as OUT ends in.

What is imported takes seconds, so it is imported once, and every rank is a fork. Rank 0 writes the frames that each
case gives, shared in each of its ways, to OUT/CASE-WAY.pt; the ranks write the predictions that they made.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 500  # steps of what is compared
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = {"prompt": "a red circle moves right", "negative_prompt": "static", "seed": 7, "attention": "sdpa"}
SMALL = {"width": 64, "height": 64, "num_frames": 5, "steps": 3, "cfg": 3.0, "shift": 3.0, "speed": "reference"}
BOTH = ("prompts", "sequence")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


SHOWN = {
    "shown": node("PreviewImage", images=["sample", 0]),
    "picture": node("PiyingSampleImage", sample="first frame"),
}


def wan(name: str, **changes: Any) -> dict[str, Any]:
    """Return a workflow of text, or frames, to video."""
    sample = node("PiyingWanSample", model=["load", 0], **{**PROMPTS, **SMALL, **changes})
    return {**SHOWN, "load": node("PiyingLoadWanVideo", model=name), "sample": sample}


def vace(
    name: str = "built-in", guidance: dict[str, Any] | None = None, memory: str = "auto", **changes: Any
) -> dict[str, Any]:
    """Return a workflow that goes on from a picture, with a reference: hints of what is kept, made and shown."""
    sample = node("PiyingVACESample", model=["load", 0], task=["task", 0], **{**PROMPTS, **SMALL, **changes})
    made = {}
    if guidance is not None:
        made = {"guidance": node("PiyingGuidance", **guidance)}
        sample["inputs"]["guidance"] = ["guidance", 0]
    return {
        **SHOWN,
        **made,
        "load": node("PiyingLoadWanVACE", model=name, memory=memory),
        "start": node("PiyingVACEExtend", num_frames=SMALL["num_frames"], first=["picture", 0], fit="crop"),
        "task": node("PiyingVACEReference", image=["picture", 0], task=["start", 0]),
        "sample": sample,
    }


def windows(**changes: Any) -> dict[str, Any]:
    """Return a workflow whose steps predict windows of the video."""
    flow = vace(num_frames=17, **changes)
    flow["start"]["inputs"]["num_frames"] = 17
    flow["windows"] = node("PiyingContextWindows", window=9, overlap=4, free_noise=True, riflex=1, loop=False)
    flow["sample"]["inputs"]["context"] = ["windows", 0]
    return flow


def long_video() -> dict[str, Any]:
    """Return a workflow of two windows, the second of which goes on from the first."""
    long = {**SMALL, "num_frames": 17, "window": 9, "overlap": 1, "steps": 2}
    sample = node("PiyingVACELongVideo", model=["load", 0], **PROMPTS, **long)
    parts = node("GetVideoComponents", video=["long", 0])
    shown = node("PreviewImage", images=["sample", 0])
    return {"load": node("PiyingLoadWanVACE", model="built-in"), "long": sample, "sample": parts, "shown": shown}


def hunyuan(memory: str = "auto", **changes: Any) -> dict[str, Any]:
    """Return a workflow of an image: 64 tokens, of which three shares of 24 are not full."""
    given = {"prompt": "a red circle", "negative_prompt": "blue", "width": 128, "height": 128, "seed": 7, "steps": 3}
    sample = node("PiyingHunyuanDiT", model=["load", 0], **{**given, "cfg": 3.0, **changes})
    return {
        "load": node("PiyingLoadHunyuanDiT", model="built-in", memory=memory),
        "sample": sample,
        "shown": SHOWN["shown"],
    }


def z_image(memory: str = "auto", **changes: Any) -> dict[str, Any]:
    """Return a workflow of an image, whose prompts are not alike long: attention has a mask."""
    given = {"prompt": "the red cat " * 12, "negative_prompt": "blue", "width": 80, "height": 64, "seed": 7}
    sample = node("PiyingZImage", model=["load", 0], **{**given, "steps": 3, "cfg": 3.0, "shift": 3.0, **changes})
    return {**SHOWN, "load": node("PiyingLoadZImage", model="diffusers/Z-Image", memory=memory), "sample": sample}


@dataclass(frozen=True)
class Case:
    """A workflow, and the ways in which it is shared."""

    workflow: dict[str, Any]
    ways: tuple[str, ...] = BOTH


ENDLESS, SHORT, SHORT_IMAGE = "endless", "short of memory", "image short of memory"
SHORT_STEPS = 499
SHORT_WIDTH = 64  # of that image, in pixels; no other is so narrow
CASES = {
    ENDLESS: Case(vace(steps=1000), ways=("prompts",)),
    SHORT: Case(vace(steps=SHORT_STEPS), ways=("prompts",)),
    "vace": Case(vace()),
    "sharded": Case(vace(memory="sharded"), ways=("auto",)),
    "windows": Case(windows(), ways=("sequence",)),
    "guided": Case(vace(guidance={"slg_blocks": "1", "method": "apg", "cfg_steps": "4, 3, 1"})),
    "nag": Case(vace(guidance={"nag_scale": 4.0}, cfg=1.0), ways=("auto",)),
    "forecast": Case(vace(step_cache=0.5, steps=8, cfg=2.0)),
    "batched": Case(vace(batch_cfg=True), ways=("sequence",)),
    # 36 tokens, of which two shares of 24 are not full.
    "experts": Case(vace("diffusers/Experts", boundary=0.9, cfg_2=2.0, width=48)),
    "long": Case(long_video(), ways=("prompts",)),
    SHORT_IMAGE: Case(hunyuan(width=SHORT_WIDTH, height=64), ways=("prompts",)),
    "hunyuan": Case(hunyuan()),
    "hunyuan_alone": Case(hunyuan(cfg=1.0, memory="sharded"), ways=("sequence",)),
    "z_image": Case(z_image()),
    "z_image_edit": Case(z_image(image=["picture", 0], strength=0.7)),
    "z_image_alone": Case(z_image(cfg=1.0, memory="sharded"), ways=("auto",)),
    "in_latents": Case(wan("diffusers/TI2V", first_frame=["picture", 0], width=96, height=96)),
}


def frames_of(session: Any, workflow: dict[str, Any]) -> Any:
    """Return the frames [n, h, w, 3] that a workflow gives."""
    return run_of(session, workflow)[0]


def run_of(session: Any, workflow: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the frames [n, h, w, 3] that a workflow gives, and the record of what ran."""
    run = session.run(filled(session, workflow))
    shown = [one.ui["piying"][0] for one in run.results.values() if "piying" in one.ui]
    return run.outputs("sample")[0][0], shown[0]


def filled(session: Any, workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow with the defaults of the widgets that it leaves out."""
    info, flow = session.definitions(), {}
    for name, one in workflow.items():
        widgets = {
            key: given[1] for key, given in info[one["class_type"]]["input"]["required"].items() if len(given) > 1
        }
        defaults = {key: options["default"] for key, options in widgets.items() if "default" in options}
        flow[name] = node(one["class_type"], **{**defaults, **one["inputs"]})
    return flow


def watch_calls(out: Path, rank: int) -> None:
    """Have the rank write how many prompts each call of an image's transformer is for, and how many tokens it has.

    One call is short of memory.
    """
    import torch
    from diffusers import HunyuanDiT2DModel, ZImageTransformer2DModel
    from piying.core.families.split_blocks import TokenShares

    calls: list[int] = []
    begin, begun = TokenShares.begin, set()

    def shared(self: Any, tokens: Any) -> Any:
        share = begin(self, tokens)
        begun.add((tokens.shape[1], share.shape[1], self.current.own))
        (out / f"shares{rank}.json").write_text(json.dumps(sorted(begun)))
        return share

    TokenShares.begin = shared

    def watched(forward: Any) -> Any:
        def call(self: Any, batch: Any, *args: Any, **named: Any) -> Any:
            calls.append(len(batch))
            (out / f"calls{rank}.json").write_text(json.dumps(calls))
            if rank == 1 and batch[0].shape[-1] == SHORT_WIDTH // 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, batch, *args, **named)

        return call

    for kind in (HunyuanDiT2DModel, ZImageTransformer2DModel):
        kind.forward = watched(kind.forward)


def run_rank(out: Path, models: Path, names: list[str]) -> None:
    """Be one rank, and run cases."""
    import torch
    from piying.core.parallel.cards import Cards
    from piying.core.parallel.joining import check_of, help_rank_0, joined_group
    from piying.core.parallel.ranks import ranks_of
    from piying.core.parallel.shards import Shards
    from piying.core.process import Interruption
    from piying.core.wan.prediction import Prediction
    from piying.runner.session import Session

    ranks, interruption, made = ranks_of(os.environ), Interruption(), []
    predict = Prediction.flows_of

    def flows_of(self: Any, step: Any, state: Any, when: Any, branches: Any) -> Any:
        made.append(list(branches))
        if not ranks.rank:
            (out / "rank0.json").write_text(json.dumps(made))
        if step.steps > LONGEST:
            (out / "begun").touch()
        if step.steps == SHORT_STEPS and ranks.rank == 1:
            (out / f"rank{ranks.rank}.json").write_text(json.dumps(made))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict(self, step, state, when, branches)

    Prediction.flows_of = flows_of
    watch_calls(out, ranks.rank)
    gather = Shards.gather

    def gather_noted(self: Any, packed: Any, slot: Any) -> None:
        (out / f"gathered{ranks.rank}").touch()
        gather(self, packed, slot)

    Shards.gather = gather_noted
    own = out / f"rank{ranks.rank}"
    with joined_group(ranks, "cpu", interruption, lambda text: print(text, file=sys.stderr)) as group:
        if ranks.rank:
            help_rank_0(group, None, check_of(group, interruption))
        asked = [] if ranks.rank else [(case, way) for case in names for way in CASES[case].ways]
        for name, way in asked:
            cards = Cards(group.size, way, group.link, group.is_shared)
            folders = {"output": own, "input": own, "cache": own / f"cache-{way}"}
            session = Session(models=[models], device="cpu", cards=cards, **folders)
            frames, record = run_of(session, CASES[name].workflow)
            torch.save(frames, out / f"{name}-{way}.pt")
            (out / f"{name}-{way}.json").write_text(json.dumps(record["shared"]))
            session.close()


def start(out: Path, models: Path, names: list[str]) -> int:
    """Fork a rank of a group, and return its exit code in the parent; the process numbers are in OUT/pids.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = int(out.name[-1])
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(size):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.dup2(os.open(out / f"rank{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
            code = 1
            try:
                run_rank(out, models, names)
                code = 0
            finally:
                traceback.print_exc()
                os._exit(code)
    (out / "pids.json").write_text(json.dumps(children))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (out / "codes.json").write_text(json.dumps(codes))
    return max(map(abs, codes))


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location(
        "piying", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["piying"] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    for family in ("wan", "wan_video", "hunyuan_dit", "z_image"):
        importlib.import_module(f"piying.core.{family}.run")
    for module in ("core.hunyuan_dit.shared_sampling", "core.z_image.shared_sampling", "core.wan.shared_sampling"):
        importlib.import_module(f"piying.{module}")
    importlib.import_module("piying.runner.session")
    for pipeline in ("WanPipeline", "HunyuanDiTPipeline", "ZImagePipeline", "ZImageImg2ImgPipeline"):
        getattr(importlib.import_module("diffusers"), pipeline)  # it is imported when it is looked for
    groups = [argument.partition("=") for argument in sys.argv[2:]]
    sys.exit(max([start(Path(out), Path(sys.argv[1]), names.split(",")) for out, _, names in groups]))
