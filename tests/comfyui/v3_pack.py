"""A pack of V3 nodes, loaded by path from a custom_nodes folder: what `io.Schema` and `NodeOutput` can say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io, ui
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context

LOADED = []


class Double(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Double",
            display_name="Twice",
            category="test",
            inputs=[io.Int.Input("value", max=40), io.Combo.Input("how", options=["add", "times"], optional=True)],
            outputs=[io.Int.Output(), io.String.Output(display_name="text")],
        )

    @classmethod
    def validate_inputs(cls, value):
        return "13 is unlucky" if value == 13 else True

    @classmethod
    def execute(cls, value, how="add"):
        return io.NodeOutput(value * 2, f"{how} {value}")


class Slow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="V3Slow", category="test", inputs=[io.Int.Input("value")], outputs=[io.Int.Output()])

    @classmethod
    async def execute(cls, value):
        await asyncio.sleep(0.01)
        return io.NodeOutput(value + (get_executing_context().node_id == "slow"))


class Hidden(io.ComfyNode):
    """Its input bears the name of a hidden value."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Hidden",
            category="test",
            inputs=[io.String.Input("prompt")],
            outputs=[io.String.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, prompt):
        hidden = cls.hidden
        known = hidden.dynprompt.has_node(hidden.unique_id)
        return io.NodeOutput(f"{prompt} {hidden.unique_id} {len(hidden.prompt)} {known} {hidden.auth_token_comfy_org}")


class Expand(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Expand",
            category="test",
            inputs=[io.Int.Input("value")],
            outputs=[io.Int.Output()],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, value):
        graph = GraphBuilder()
        doubled = graph.node("V3Double", value=value)
        return io.NodeOutput(graph.node("V3Slow", value=doubled.out(0)).out(0), expand=graph.finalize())


class Lazy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Lazy",
            category="test",
            inputs=[io.Boolean.Input("first"), io.Int.Input("a", lazy=True), io.Int.Input("b", lazy=True)],
            outputs=[io.String.Output()],
        )

    @classmethod
    def check_lazy_status(cls, first, a=None, b=None):
        return [name for name, value in ((("a", a) if first else ("b", b)),) if value is None]

    @classmethod
    def execute(cls, first, a=None, b=None):
        return io.NodeOutput(f"a={a} b={b}")


class Block(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="V3Block", category="test", inputs=[], outputs=[io.Int.Output(), io.Int.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(block_execution="closed today")


class Lists(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Lists",
            category="test",
            inputs=[io.Int.Input("values")],
            outputs=[io.Int.Output(is_output_list=True)],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, values):
        return io.NodeOutput([*values, *values])


class Show(io.ComfyNode):
    """An output node that saves; its fingerprint never changes, so a second run takes the first one's result."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="V3Show", category="test", inputs=[io.AnyType.Input("source")], outputs=[], is_output_node=True
        )

    @classmethod
    def fingerprint_inputs(cls, source):
        return "always the same"

    @classmethod
    def execute(cls, source):
        if isinstance(source, str):
            return io.NodeOutput(ui=ui.PreviewText(source))
        folder, name, counter, _, _ = folder_paths.get_save_image_path("v3", folder_paths.get_output_directory())
        saved = {"filename": f"{name}_{counter:05}_.txt", "subfolder": "", "type": "output"}
        (Path(folder) / saved["filename"]).write_text(str(source))
        return io.NodeOutput(ui={"notes": [saved], "text": [str(source)]})


class Malformed(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        raise ValueError("no schema")

    @classmethod
    def execute(cls):
        return io.NodeOutput()


class Extension(ComfyExtension):
    async def on_load(self):
        LOADED.append(self)

    async def get_node_list(self):
        return [Double, Slow, Hidden, Expand, Lazy, Block, Malformed, Lists, Show]


async def comfy_entrypoint():
    return Extension()
