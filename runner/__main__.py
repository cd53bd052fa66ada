"""`python -m runner WORKFLOW`: loads the pack by path, as ComfyUI does, and runs the command line.

The pack has no name of its own on disk (its folder may be called anything), so it gets one here.
"""

import os
import signal
import sys
import threading
from types import FrameType

if __name__ == "__main__":
    # A file that is opened while a standard descriptor is closed would take its place, and get what is printed.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)

    def end(number: int, frame: FrameType | None) -> None:
        """End the process, which has done nothing yet; the codes are those of `core.process`."""
        del frame
        os._exit(129 if number == getattr(signal, "SIGHUP", 0) else 130)

    SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    SIGNALS = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for one in SIGNALS:
        signal.signal(one, end)

import importlib.util
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
    # A workflow file of such a name is given as ./serve.
    command = sys.argv[1] if sys.argv[1:2] in (["serve"], ["submit"]) else None
    if command is None:
        code = importlib.import_module(f"{PACK}.runner.cli").main()
    else:
        module = {"serve": "cli", "submit": "submit"}[command]
        code = importlib.import_module(f"{PACK}.serve.{module}").main(sys.argv[2:])
    # Python takes its time to let go of torch, and a second Ctrl-C then would be told with a traceback.
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    waited = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    # Where Ctrl-C came while a text was executed, as namedtuple does, Python would end itself by SIGINT now; and it
    # would wait for what a pack has begun.
    if code in (129, 130) or waited:
        os._exit(code)
    sys.exit(code)
