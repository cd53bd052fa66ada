"""Nodes that show what an engine does with them; the same ones run in ComfyUI and in the runner.

Each call is written to CALLS, so that order, arguments and cache hits can be compared. Nothing is
imported: ComfyUI's ExecutionBlocker is put in by whoever loads this file.
"""

import asyncio

CALLS = []


class ExecutionBlocker:
    def __init__(self, message=None):
        self.message = message


class AnyType(str):
    """Differs from no type: how packs declare an input that takes anything."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class Base:
    CATEGORY = "testing"
    FUNCTION = "run"
    RETURN_TYPES = ("INT",)
    REQUIRED = {"value": ("INT", {"min": -1000, "max": 1000})}
    OPTIONAL = {}
    HIDDEN = {}

    @classmethod
    def INPUT_TYPES(cls):
        groups = {"required": cls.REQUIRED, "optional": cls.OPTIONAL, "hidden": cls.HIDDEN}
        return {name: group for name, group in groups.items() if group}

    def note(self, *values):
        CALLS.append([type(self).__name__, *values])


class TInt(Base):
    def run(self, value):
        self.note(value)
        return (value,)


class TAdd(Base):
    REQUIRED = {"a": ("INT", {}), "b": ("INT", {})}

    def run(self, a, b):
        self.note(a, b)
        return (a + b,)


class TOptional(Base):
    OPTIONAL = {"extra": ("INT", {})}

    def run(self, value, extra=None):
        self.note(value, extra)
        return (value,)


class TSpread(Base):
    OUTPUT_IS_LIST = (True,)

    def run(self, value):
        self.note(value)
        return (list(range(value)),)


class TTwo(Base):
    RETURN_TYPES = ("INT", "INT")
    OUTPUT_IS_LIST = (False, True)

    def run(self, value):
        self.note(value)
        return (value, [value, value + 1])


class TShort(Base):
    """Gives fewer outputs than it declares."""

    RETURN_TYPES = ("INT", "INT")

    def run(self, value):
        self.note(value)
        return (value,)


class TGather(Base):
    INPUT_IS_LIST = True
    REQUIRED = {"a": ("INT", {}), "b": ("INT", {})}
    RETURN_TYPES = ("INT",)

    def run(self, a, b):
        self.note(a, b)
        return (sum(a) + sum(b),)


class TShow(Base):
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    REQUIRED = {"value": (AnyType("*"), {})}

    def run(self, value):
        self.note(value)
        return {"ui": {"seen": [value]}}


class TShowAndPass(Base):
    OUTPUT_NODE = True

    def run(self, value):
        self.note(value)
        return {"ui": {"seen": [value]}, "result": (value,)}


class TSwitch(Base):
    REQUIRED = {"which": ("BOOLEAN", {}), "yes": ("INT", {"lazy": True}), "no": ("INT", {"lazy": True})}

    def check_lazy_status(self, which, yes=None, no=None):
        return ["yes"] if which else ["no"]

    def run(self, which, yes=None, no=None):
        self.note(which, yes, no)
        return (yes if which else no,)


class TProduct(Base):
    """Needs b only where a is not zero."""

    REQUIRED = {"a": ("INT", {"lazy": True}), "b": ("INT", {"lazy": True})}

    def check_lazy_status(self, a, b):
        if a is None:
            return ["a"]
        return ["b"] if a != 0 and b is None else []

    def run(self, a, b=None):
        self.note(a, b)
        return (a * (b or 0),)


class TExpand(Base):
    """Becomes a chain of additions."""

    REQUIRED = {"value": ("INT", {}), "times": ("INT", {})}
    HIDDEN = {"me": "UNIQUE_ID"}

    def run(self, value, times, me):
        self.note(value, times)
        graph, last = {}, value
        for index in range(times):
            graph[f"{me}.{value}.{index}"] = {"class_type": "TAdd", "inputs": {"a": last, "b": index}}
            last = [f"{me}.{value}.{index}", 0]
        return {"result": (last,), "expand": graph}


class TLoop(Base):
    """Counts down by becoming itself, once more each time."""

    HIDDEN = {"me": "UNIQUE_ID"}

    def run(self, value, me):
        self.note(value)
        if value <= 0:
            return (100,)
        graph = {
            f"{me}.less": {"class_type": "TAdd", "inputs": {"a": value, "b": -1}},
            f"{me}.again": {"class_type": "TLoop", "inputs": {"value": [f"{me}.less", 0]}},
        }
        return {"result": ([f"{me}.again", 0],), "expand": graph}


class TExpandShow(Base):
    """Becomes a graph that shows something, and passes on what it was given from outside."""

    HIDDEN = {"me": "UNIQUE_ID"}
    REQUIRED = {"value": ("INT", {"rawLink": True})}

    def run(self, value, me):
        self.note(value)
        graph = {f"{me}.show": {"class_type": "TShowAndPass", "inputs": {"value": value}}}
        return {"result": ([f"{me}.show", 0],), "expand": graph}


class TExpandTwice(TExpand):
    """Uses an id that is taken."""

    def run(self, value, times, me):
        self.note(value, times)
        return {"result": (1,), "expand": {me: {"class_type": "TInt", "inputs": {"value": 1}}}}


class TAsync(Base):
    REQUIRED = {"value": ("INT", {}), "delay": ("FLOAT", {})}

    async def run(self, value, delay):
        self.note("begin", value)
        await asyncio.sleep(delay)
        self.note("end", value)
        return (value,)


class TAsyncFails(TAsync):
    async def run(self, value, delay):
        await asyncio.sleep(delay)
        raise ValueError("late trouble")


class TBlock(Base):
    REQUIRED = {"value": ("INT", {}), "block": ("BOOLEAN", {}), "message": ("STRING", {})}

    def run(self, value, block, message):
        self.note(value, block)
        return (ExecutionBlocker(message or None) if block else value,)


class TBlockAll(Base):
    RETURN_TYPES = ("INT", "INT")

    def run(self, value):
        self.note(value)
        return ExecutionBlocker(None)


class TChanged(Base):
    """The literal `stamp` stands for a file's time."""

    REQUIRED = {"value": ("INT", {}), "stamp": ("STRING", {})}

    @classmethod
    def IS_CHANGED(cls, value, stamp):
        CALLS.append(["IS_CHANGED", value, stamp])
        if stamp == "fails":
            raise ValueError("no such file")
        return float("nan") if stamp == "always" else stamp

    def run(self, value, stamp):
        self.note(value, stamp)
        return (value,)


class TCounter(Base):
    """Keeps state in its object."""

    count = 0

    def run(self, value):
        self.count += 1
        self.note(value, self.count)
        return (self.count,)


class TNotIdempotent(Base):
    NOT_IDEMPOTENT = True

    def run(self, value):
        self.note(value)
        return (value,)


class TWithId(Base):
    HIDDEN = {"me": "UNIQUE_ID", "prompt": "PROMPT"}

    def run(self, value, me, prompt):
        self.note(value, me, sorted(prompt))
        return (value,)


class TDynamic(Base):
    HIDDEN = {"graph": "DYNPROMPT", "me": "UNIQUE_ID"}

    def run(self, value, graph, me):
        self.note(graph.get_node(me)["class_type"], graph.has_node("nowhere"), graph.get_display_node_id(me))
        return (value,)


class TFail(Base):
    def run(self, value):
        self.note(value)
        raise ValueError(f"cannot take {value}")


class TChecked(Base):
    REQUIRED = {"value": ("INT", {"min": 0, "max": 5}), "other": ("INT", {"min": 0, "max": 5})}

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        return True if value is None or value % 2 == 0 else "value must be even"

    def run(self, value, other):
        self.note(value, other)
        return (value,)


class TChoice(Base):
    REQUIRED = {"choice": (["red", "green"], {}), "flag": ("BOOLEAN", {}), "text": ("STRING", {})}

    def run(self, choice, flag, text):
        self.note(choice, flag, text)
        return (1,)


NODE_CLASS_MAPPINGS = {c.__name__: c for c in list(globals().values()) if isinstance(c, type) and issubclass(c, Base)}
del NODE_CLASS_MAPPINGS["Base"]
