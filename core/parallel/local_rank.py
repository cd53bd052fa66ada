"""Local rank: what runs in a process that `local_ranks` has started; `local_rank.py PACK FOLDER JSON`.

The pack gets the name that it has in the process that started this one, so that what they send each other is known by
the same names here; its entry point, which declares nodes, is left out.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType


def main() -> None:
    """Be the rank that the arguments tell, until the process that started this one has no more to do."""
    name, folder, given = sys.argv[1:]
    # The modules beside this file are not to be found by names of their own.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    pack = ModuleType(name)
    pack.__path__ = [folder]
    sys.modules[name] = pack
    joining = importlib.import_module(f"{name}.core.parallel.joining")
    told = json.loads(given)
    joining.be_local_rank(told["ranks"], told["device"], told["vram"], told["started_by"])


if __name__ == "__main__":
    main()
