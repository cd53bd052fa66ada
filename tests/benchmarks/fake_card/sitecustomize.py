"""A card that is not there: in a Python that finds this file on its path, "cuda" is the processor's own memory.

What runs are the lines that only a card reaches: their arguments, names and order. Nothing runs beside anything else,
no memory is limited, and no time means anything.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

CAPABILITY = (9, 0)
MEMORY = 80 * 2**30
STATISTICS = ("active_bytes.all.current", "reserved_bytes.all.current")  # what ComfyUI reads
ROOFLINE = (8192, 8192)  # of the product that benchmarks/floors.py times: half an hour on a processor


class Event:
    def __init__(self, *_, **__):
        self.at = 0.0

    def record(self, *_):
        self.at = time.perf_counter()

    def query(self):
        return True

    def synchronize(self):
        pass

    def wait(self, *_):
        pass

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


class Stream:
    def __init__(self, *_, **__):
        self.device = None

    def wait_stream(self, other):
        assert isinstance(other, Stream)

    def wait_event(self, event):
        assert isinstance(event, Event)

    def record_event(self, event=None):
        return event or Event()

    def synchronize(self):
        pass

    def query(self):
        return True


def pretend(torch):  # noqa: C901 - a table of what torch.cuda answers
    def index(device=None):
        # Asked as torch.cuda asks: what is no card is refused.
        return torch._utils._get_device_index(device, optional=True) if device is not None else 0

    def here(value):
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

    class Here(torch.overrides.TorchFunctionMode):
        """Has tensors made and moved on the processor."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.device:
                # A number alone is of the card that torch was built for.
                args = ("cuda", *args) if args and isinstance(args[0], int) else args
                return function(*args, **(kwargs or {}))
            if function is torch.randn and args == ROOFLINE:
                args = (64, 64)
            named = {key: here(value) for key, value in (kwargs or {}).items() if key != "pin_memory"}
            if function in (torch.Tensor.pin_memory, torch.Tensor.cuda):
                return args[0]
            if function is torch.Tensor.record_stream:
                assert isinstance(args[1], Stream)
                return None
            return function(*map(here, args), **named)

    class Generator(torch.Generator):
        def __new__(cls, device="cpu"):
            return super().__new__(cls, here(device))

    def scaled_mm(one, other, scale_a, scale_b, bias=None, out_dtype=None, use_fast_accum=False):
        # On the processor torch 2.11 has one scale for a whole matrix.
        assert scale_a.shape == (one.shape[0], 1) and scale_b.shape == (1, other.shape[1]) and scale_b.is_contiguous()
        product = (one.float() * scale_a) @ (other.float() * scale_b)
        return (product if bias is None else product + bias.float()).to(out_dtype)

    @contextmanager
    def stream(which):
        assert isinstance(which, Stream)
        yield

    fractions = {0: 1.0}

    def set_fraction(fraction, device=None):
        # As torch.cuda does: a card by its number alone.
        torch._utils._get_device_index(device) if device is not None else 0
        assert 0 <= fraction <= 1, fraction
        fractions[index(device)] = fraction

    current = Stream()
    card = SimpleNamespace(
        name="Fake H100",
        total_memory=MEMORY,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        multi_processor_count=132,
        clock_rate=1_980_000,
        memory_clock_rate=2_619_000,
        memory_bus_width=5120,
    )
    answers = {
        "is_available": lambda: True,
        "get_allocator_backend": lambda: "native",
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": index,
        "get_device_name": lambda device=None: card.name,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: card,
        "mem_get_info": lambda device=None: (MEMORY - 2**29, MEMORY),
        "memory_allocated": lambda device=None: index(device),
        "memory_reserved": lambda device=None: index(device),
        "max_memory_allocated": lambda device=None: 2**30 + index(device),
        "max_memory_reserved": lambda device=None: 2**31 + index(device),
        "memory_stats": lambda device=None: dict.fromkeys(STATISTICS, index(device)),
        "reset_peak_memory_stats": lambda device=None: index(device),
        "synchronize": lambda device=None: index(device),
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": set_fraction,
        "get_per_process_memory_fraction": lambda device=None: fractions[index(device)],
        "current_stream": lambda device=None: current,
        "default_stream": lambda device=None: current,
        "stream": stream,
        "get_rng_state": lambda device="cuda": torch.get_rng_state() if index(device) == 0 else None,
        "set_rng_state": lambda state, device="cuda": index(device),
        "is_bf16_supported": lambda *_, **__: True,
        "_sleep": lambda cycles: None,
        "Event": Event,
        "Stream": Stream,
    }
    for name, answer in answers.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, answer)
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cuda")
    torch.Generator = Generator
    torch._scaled_mm = scaled_mm
    Here().__enter__()


class AfterTorch(importlib.abc.MetaPathFinder):
    """Calls `pretend` when torch has been imported, and nothing where it never is."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            pretend(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, AfterTorch())
