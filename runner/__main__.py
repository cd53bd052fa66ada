"""`python -m runner WORKFLOW`: loads the pack by path, as ComfyUI does, and runs the command line.

The pack has no name of its own on disk (its folder may be called anything), so it gets one here.
"""

import importlib.util
import sys
from pathlib import Path

PACK = "piying"
ROOT = Path(__file__).resolve().parents[1]

if PACK not in sys.modules:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)

if __name__ == "__main__":
    # ComfyUI's module of that name must stay findable for packs that import it.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    main = importlib.import_module(f"{PACK}.runner.cli").main
    sys.exit(main())
