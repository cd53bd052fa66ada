"""Every shipped workflow with the built-in models in each weight format that `--quantize` writes, and in two it reads.

    python benchmarks/format_workflows.py [--to fp8 int8 …] [--workflows t2v inpaint …] [--scratch DIR] [--json FILE]

The built-in models are copied with their transformer (of the prompt model all weights) written anew in the format;
workflows run headless in fp32 on the CPU, each with the seed it was saved with. Beside the signal-to-noise ratio of
what is saved to what the weights as they are make, it is told whether the last one shows the same background, colour,
shape and motion, and of expanded prompts how many are the same.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, be_quiet, describe, load_pack, write_json
from measuring import clock
from wan_steps import core

# The folder of a built-in model, and the part of it that is written anew.
PARTS = {
    "wan_vace": "transformer/diffusion_pytorch_model",
    "wan_video": "transformer/diffusion_pytorch_model",
    "hunyuan_dit": "transformer/diffusion_pytorch_model",
    "prompt": "model",
}
# Formats that are only read, by the writers of the tests; inputs are rotated in groups of which toys' rows are whole.
READ_ALONE = {"int4": "int4_convrot", "w4a8": "w4a8"}
GROUP = 16
Row = dict[str, Any]


def write_models(folder: Path, to: str) -> dict[str, str]:
    """Write the built-in models into a folder, and return why one could not be written in the format."""
    quantized_file, errors = core("checkpoints.quantized_file"), core("errors")
    shutil.copytree(ROOT / "builtin_models", folder)
    refused: dict[str, str] = {}
    for name, part in PARTS.items() if to else ():
        source = folder / name / f"{part}.safetensors"
        if to in READ_ALONE:
            write_read_alone(source, READ_ALONE[to])
            continue
        ending = ".gguf" if quantized_file.TARGETS[to].name == "gguf" else ".safetensors"
        written = source.with_name(f"written{ending}")
        try:
            quantized_file.quantize_file(source, to, written)
        except errors.PiyingError as error:
            refused[name] = str(error).partition(": ")[2]
        else:
            source.unlink()
            written.rename(source.with_suffix(ending))
    return refused


def write_read_alone(file: Path, form: str) -> None:
    """Write a file of weights anew in a form of the tests."""
    from safetensors.torch import load_file, save_file

    packed = importlib.import_module("piying.tests.core.formats.packed")
    packed.GROUP = GROUP
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    found, _, texts = packed.written(tensors, getattr(packed, form), blocks=r"\d+")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, file, metadata=texts or None)


@dataclass
class Made:
    """What a workflow makes: pictures [n, h, w, 3] in 0..1 of each file, expanded prompts, and what it took."""

    files: list[np.ndarray]
    texts: list[str]
    seconds: float

    def beside(self, plain: Made) -> Row:
        """Return how it differs from what the weights as they are make."""
        reading = importlib.import_module("piying.training.reading")
        alike = [one.shape == other.shape for one, other in zip(self.files, plain.files, strict=True)]
        ratios = [reading.psnr(one, other) for one, other in zip(self.files, plain.files, strict=True)]
        shown = [reading.read_video(made.files[-1]) for made in (self, plain)]
        names = ("background", "colour", "shape", "motion")
        return {
            "psnr": min(ratios) if all(alike) else 0.0,
            "attributes": [name for name in names if getattr(shown[0], name) == getattr(shown[1], name)],
            "texts": sum(one == other for one, other in zip(self.texts, plain.texts, strict=True)),
            "of": len(self.texts),
            "seconds": self.seconds,
        }


def run(session: Any, workflow: Path) -> Made:
    """Run a workflow with the built-in models of the moment."""
    video, images = core("media.video"), core("media.images")
    begun = clock("cpu")
    finished = session.run(workflow)
    took = clock("cpu") - begun
    files = [
        images.read_image(path)[0].numpy()
        if path.suffix == ".png"
        else np.stack(list(video.read_frames(path))).astype(np.float32) / 255
        for path in finished.files
    ]
    writers = [node.id for node in finished.graph.values() if node.class_type == "PiyingExpandPrompt"]
    return Made(files, [str(finished.results[one].outputs[0][0]) for one in writers], took)


def measured(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for each format and workflow; the first format is none, for the weights as they are."""
    sessions, cache = importlib.import_module("piying.runner.session"), core("executor.model_cache")
    installed_model = core("catalog.installed_model")
    paths = [ROOT / "workflows" / f"{name}.json" for name in options.workflows]
    plain: dict[Path, Made] = {}
    rows: list[Row] = []
    for to in ("", *options.to):
        models = folder / (to or "plain")
        refused = write_models(models, to)
        installed_model.BUILT_IN_ROOT = models
        session = sessions.Session(output=models / "output", device="cpu")
        for path in paths:
            made = run(session, path)
            if not to:
                plain[path] = made
            else:
                rows.append({"to": to, "workflow": path.stem, "as it was": refused, **made.beside(plain[path])})
                print(as_line(rows[-1]), flush=True)
        session.close()
        cache.evict_models()
        shutil.rmtree(models)
    return rows


def as_line(row: Row) -> str:
    """Return a row for people."""
    missed = {"background", "colour", "shape", "motion"} - set(row["attributes"])
    said = f"other {', '.join(sorted(missed))}" if missed else "shows the same"
    texts = f", {row['texts']} of {row['of']} texts the same" if row["of"] else ""
    left = f" ({', '.join(row['as it was'])} as it was)" if row["as it was"] else ""
    return f"{row['to']:13}{row['workflow']:22}{row['psnr']:6.1f} dB  {said}{texts}{left}"


def as_table(rows: list[Row]) -> str:
    """Return the rows in Markdown: of each format the least of the workflows."""
    lines = ["| | least, dB | median, dB | workflows that show the same | texts the same |", "|---" * 5 + "|"]
    for to in dict.fromkeys(row["to"] for row in rows):
        own = [row for row in rows if row["to"] == to]
        ratios = sorted(row["psnr"] for row in own)
        same = sum(len(row["attributes"]) == 4 for row in own)
        texts, of = sum(row["texts"] for row in own), sum(row["of"] for row in own)
        lines.append(
            f"| {to} | {ratios[0]:.1f} | {ratios[len(ratios) // 2]:.1f} | {same} of {len(own)} | {texts} of {of} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    load_pack()
    targets = tuple(core("checkpoints.quantized_file").TARGETS)
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Rows of the built-in models are no whole blocks of the K types.
    usual = [to for to in targets if not to.endswith("_k")]
    parse.add_argument("--to", nargs="+", choices=(*targets, *READ_ALONE), default=[*usual, *READ_ALONE])
    parse.add_argument("--workflows", nargs="+", choices=names, default=names)
    parse.add_argument("--scratch", type=Path)
    parse.add_argument("--json", type=Path)
    options = parse.parse_args()
    be_quiet()
    logging.getLogger("piying").setLevel(logging.ERROR)  # each run would say that the built-in models are taken
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        rows = measured(options, Path(folder))
    print(as_table(rows))
    if options.json:
        write_json(options.json, {"machine": describe("cpu"), "rows": rows})


if __name__ == "__main__":
    main()
