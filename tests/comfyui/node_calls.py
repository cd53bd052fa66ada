"""Calls node classes on given values: those of a ComfyUI checkout, as a script of their own process, or any others.

As a script: `cd CHECKOUT && python node_calls.py FOLDER`. The folder is ComfyUI's base; it holds `calls.json` and
`values.npz`, and gets `results.json` and `results.npz`.

A call is {"node": id, "inputs": {name: value}}. A value is JSON, or one of
{"$array": key}                  an array of values.npz, as a tensor
{"$audio": key, "rate": int}     one as AUDIO
{"$of": call, "slot": slot}      an output of an earlier call
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EXTRAS = ("images", "mask", "video", "primitive", "preview_any", "string")


def perform(classes: Mapping[str, Any], calls: list[dict[str, Any]], arrays: Mapping[str, Any]) -> list[Any]:
    """Return (outputs, ui) of each call, or the exception it raised."""
    done: list[Any] = []
    for call in calls:
        inputs = {name: _given(value, arrays, done) for name, value in call["inputs"].items()}
        try:
            done.append(_called(classes[call["node"]], inputs, call.get("hidden", {})))
        except Exception as error:  # noqa: BLE001 - a node may raise anything, and that is a result here
            done.append(error)
    return done


def _given(value: Any, arrays: Mapping[str, Any], done: list[Any]) -> Any:
    import torch

    if isinstance(value, dict) and "$array" in value:
        return torch.from_numpy(arrays[value["$array"]].copy())
    if isinstance(value, dict) and "$audio" in value:
        return {"waveform": torch.from_numpy(arrays[value["$audio"]].copy()), "sample_rate": value["rate"]}
    if isinstance(value, dict) and "$of" in value:
        return done[value["$of"]][0][value["slot"]]
    return value


def _called(node_class: Any, inputs: dict[str, Any], hidden: dict[str, Any]) -> tuple[Any, Any]:
    if hasattr(node_class, "define_schema"):
        node_class.hidden = SimpleNamespace(**{"prompt": None, "extra_pnginfo": None, **hidden})
        output = node_class.execute(**inputs)
        return output.result or (), output.ui.as_dict() if output.ui else {}
    function = getattr(node_class(), node_class.FUNCTION)
    declared = node_class.INPUT_TYPES().get("hidden", {})
    result = function(**inputs, **{name: value for name, value in hidden.items() if name in declared})
    if isinstance(result, dict):
        return result.get("result", ()), result.get("ui", {})
    return result, {}


def save(done: list[Any], folder: Path) -> None:
    """Write what `perform` returned."""
    import numpy as np

    arrays: dict[str, Any] = {}
    results = [_plain(result, str(index), arrays) for index, result in enumerate(done)]
    np.savez(folder / "results.npz", **arrays)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def load(folder: Path) -> list[Any]:
    """Return what `save` wrote: per call, outputs and ui, or the error's text."""
    import numpy as np

    with np.load(folder / "results.npz") as arrays:
        kept = dict(arrays)
    return [_restored(result, kept) for result in json.loads((folder / "results.json").read_text(encoding="utf-8"))]


def _plain(value: Any, key: str, arrays: dict[str, Any]) -> Any:
    if isinstance(value, Exception):
        return {"$error": f"{type(value).__name__}: {value}"}
    if hasattr(value, "numpy"):
        arrays[key] = value.cpu().numpy()
        return {"$array": key}
    if isinstance(value, dict):
        return {name: _plain(each, f"{key}.{name}", arrays) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{key}.{index}", arrays) for index, each in enumerate(value)]
    return value if isinstance(value, str | int | float | None) else {"$object": type(value).__name__}


def _restored(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$array" in value:
            return arrays[value["$array"]]
        return {name: _restored(each, arrays) for name, each in value.items()}
    return [_restored(each, arrays) for each in value] if isinstance(value, list) else value


async def _comfyui_classes() -> Mapping[str, Any]:
    import nodes

    for name in EXTRAS:
        await nodes.load_custom_node(str(Path.cwd() / f"comfy_extras/nodes_{name}.py"), module_parent="comfy_extras")
    return dict(nodes.NODE_CLASS_MAPPINGS)


def main(folder: Path) -> None:
    """Perform the calls of `folder` with the ComfyUI of the current directory."""
    import numpy as np

    calls = json.loads((folder / "calls.json").read_text(encoding="utf-8"))
    sys.path[0] = str(Path.cwd())
    sys.argv[1:] = ["--cpu", "--base-directory", str(folder)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401 - before nodes.py puts comfy/ on the path, where another `utils` lies

    classes = asyncio.run(_comfyui_classes())
    with np.load(folder / "values.npz") as values:
        done = perform(classes, calls, dict(values))
    save(done, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
