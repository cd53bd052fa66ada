"""What ComfyUI's memory management does with our models: `python memory_probe.py CHECKOUT FLAGS…` prints JSON.

A process of its own, since ComfyUI's modules have names like `nodes`.
"""

import importlib.util
import json
import sys
from pathlib import Path

checkout, *flags = sys.argv[1:]
sys.argv[1:] = flags
root = Path(__file__).resolve().parents[2]
sys.path.insert(0, checkout)
shown, sys.stdout = sys.stdout, sys.stderr  # ComfyUI prints while it loads

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management as management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

spec = importlib.util.spec_from_file_location("piying", root / "__init__.py", submodule_search_locations=[str(root)])
pack = importlib.util.module_from_spec(spec)
sys.modules["piying"] = pack
spec.loader.exec_module(pack)

from piying.core.executor.model_cache import cached_bytes, cached_model  # noqa: E402
from piying.core.host.current import get_host  # noqa: E402
from piying.core.planner.machine import read_machine  # noqa: E402

host, device = get_host(), management.get_torch_device()
report = {"bytes": []}


def held():
    report["bytes"].append(cached_bytes())


cached_model("a", 1, lambda: torch.nn.Linear(1000, 1000, bias=False), host)
cached_model("b", 1, lambda: torch.nn.Linear(1000, 500, bias=False), host)
report["entries"] = len(management.current_loaded_models)
held()

# Another pack's model comes and goes in the usual way.
other = ModelPatcher(torch.nn.Linear(4, 4), device, torch.device("cpu"))
management.load_models_gpu([other])
management.free_memory(10**9, device)
management.cleanup_models()
held()
report["listed"] = len(management.loaded_models())

management.unload_all_models()
held()
report["left"] = len(management.current_loaded_models)

cached_model("a", 1, lambda: torch.nn.Linear(1000, 1000, bias=False), host)
report["entries_again"] = len(management.current_loaded_models)
management.unload_all_models()
held()

# A model on the first device, and room that is asked for on another one, which this torch only has the name of.
management.load_models_gpu([other])
report["evictable"] = [host.memory_rules(name).evictable for name in ("", "mps")]
loaded = []
for name in ("mps", "cpu"):
    host.make_room(int(1e18), name)
    loaded.append(sum(model.model is other for model in management.current_loaded_models))
report["loaded_after_room"] = loaded

rules, machine = host.memory_rules(), read_machine(host)
report["rules"] = {"reserved": rules.reserved, "low_vram": rules.low_vram, "evictable": rules.evictable}
report["device"] = [host.device(), machine.device, machine.low_vram]
report["cache"] = str(host.cache_folder().relative_to(folder_paths.get_user_directory()))
shown.write(json.dumps(report))
