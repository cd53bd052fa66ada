"""Session: runs in one process that share node classes, folders and a cache; the way in for scripts."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .. import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..core.errors import PiyingError
from ..core.host.comfy_checkout import CheckoutHost, checkout_in
from ..core.host.current import get_host, set_host
from ..core.host.headless import HeadlessHost
from ..core.host.model_folders import EXTRA_PATHS, ExtraFolder, extra_folders
from ..core.parallel.joining import end_started_ranks
from .cache import Cache
from .core_nodes import CORE_NODE_CLASSES, CORE_NODE_TITLES
from .core_nodes.video import VideoFile
from .definitions import ObjectInfo, object_info
from .display import Display, EventDisplay, Quiet
from .errors import InvalidGraph, NodeError, UnknownClassesError, WorkflowError
from .execute import Executor, Hidden, Result
from .graph import Graph, Node, find_node
from .packs import find_packs, load_packs
from .plan import NodePlan, plan_graph
from .v3_nodes import as_v1
from .validate import validate_graph
from .workflow_file import Workflow, find_assignments, prepared_workflow, read_workflow_file

if TYPE_CHECKING:
    from ..core.parallel.cards import Cards

log = logging.getLogger("piying")

ROOT = Path(__file__).resolve().parents[1]
CLASSES: dict[str, Any] = {**CORE_NODE_CLASSES, **NODE_CLASS_MAPPINGS}
TITLES: dict[str, str] = {**CORE_NODE_TITLES, **NODE_DISPLAY_NAME_MAPPINGS}
StrPath = str | Path


@dataclass(frozen=True)
class Finished:
    """The outcome of a run.

    Attributes:
        graph: the nodes that ran, and those whose results were there already.
        results: outputs (a list of values per slot) and ui, by node id.
        files: the files that were written to the output folder, in the order of their nodes.
        errors: what was wrong with outputs that were left out; empty unless `partial` was given.
    """

    graph: Graph
    results: dict[str, Result]
    files: list[Path]
    errors: list[NodeError] = field(default_factory=list)

    def outputs(self, node: str) -> list[list[Any]]:
        """Return the outputs of a node, named by id, title or class: a list of values per slot."""
        return self.results[find_node(node, self.graph).id].outputs


class Session:
    """Node classes, folders, a device and a cache for several runs.

    Args:
        input, output: folders to read from and write to.
        models: folders of models, looked through before the pack's own and ComfyUI's.
        device: `auto`, or a torch device.
        custom_nodes: packs, or folders of packs, to load.
        comfyui: a ComfyUI checkout whose modules such packs may import.
        display: shows what happens; by default warnings go to stderr.
        vram, ram: bytes of the card and of main memory to use, or to plan with.
        imagined: only plans are made, for limits and models that may not be there.
        check_cancelled: called often while nodes run; raises KeyboardInterrupt to stop them.
        cache: where what is worth keeping between runs goes; by default the user's own cache folder.
        cards: those that runs are shared between, or that plans are made for; None for one.
        second_device: another card, for text encoders and VAE; "" for none.
        second_vram: bytes of it to use, or to plan with.

    Raises:
        WorkflowError: a folder is not there.
    """

    def __init__(
        self,
        *,
        input: StrPath = "input",
        output: StrPath = "output",
        models: Iterable[StrPath] = (),
        device: str = "auto",
        custom_nodes: Iterable[StrPath] = (),
        comfyui: StrPath | None = None,
        display: Display | None = None,
        vram: int | None = None,
        ram: int | None = None,
        imagined: bool = False,
        check_cancelled: Callable[[], None] = lambda: None,
        cache: StrPath | None = None,
        cards: Cards | None = None,
        second_device: str = "",
        second_vram: int | None = None,
    ) -> None:
        folders = [Path(folder) for folder in models]
        for folder in folders:
            if not folder.is_dir():
                raise WorkflowError(f"--models {folder}: there is no such folder.")
        folders.append(ROOT / "models")
        # The pack may lie in the custom_nodes of a ComfyUI, whose models are there to use.
        extra: list[ExtraFolder] = []
        if ROOT.parent.name == "custom_nodes":
            folders.append(ROOT.parents[1] / "models")
            extra = extra_folders(ROOT.parents[1] / EXTRA_PATHS)
        self.display = display or Quiet()
        self.output = Path(output)
        self._temp = tempfile.TemporaryDirectory(prefix="piying-")
        self._checkout = None if comfyui is None else checkout_in(Path(comfyui))
        options: dict[str, Any] = {
            "input": Path(input),
            "output": self.output,
            "temp": Path(self._temp.name),
            "models": folders,
            "extra": extra,
            "chosen_device": device,
            # Looked up for each phase: the display may be another one by then.
            "on_progress": lambda phase, total: self.display.progress(phase, total),
            "vram": vram,
            "ram": ram,
            "imagined": imagined,
            "cards": cards,
            "chosen_second": second_device,
            "second_vram": second_vram,
            "on_check": check_cancelled,
            "cache": None if cache is None else Path(cache),
            "as_video": VideoFile,
        }
        self._host = HeadlessHost(**options)
        paths = find_packs([Path(folder) for folder in custom_nodes])
        if self._checkout is not None:
            self._checkout.bring_up(self._host, paths)
            if self._checkout.has_nodes:
                self._host = CheckoutHost(**options)
        self._take_over()
        packs = load_packs(paths, self._checkout)
        self._failed_packs = list(packs.failed.values())
        self._origins = packs.origins
        self._unusable: dict[str, str] = {}
        self.classes = self._with_own(packs.classes)
        self.titles = {**packs.titles, **TITLES}
        self._cache = Cache()

    def _with_own(self, classes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the classes of packs and of ComfyUI, as the engine runs them, with ours.

        As in ComfyUI, a pack cannot take the place of a node that is there. ComfyUI's own nodes take that of their
        stand-ins, so that what they give each other is of one kind.
        """
        found: dict[str, Any] = {}
        for name, node_class in classes.items():
            try:
                found[name] = as_v1(node_class)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - anybody's code
                self._unusable[name] = f"its schema is wrong ({type(error).__name__}: {error})"
        if self._checkout is not None and self._checkout.has_nodes:
            return {**CORE_NODE_CLASSES, **found, **NODE_CLASS_MAPPINGS}
        return {**found, **CLASSES}

    def _take_over(self) -> None:
        """Make the process this session's: sessions share it, and nodes ask the host of the moment."""
        set_host(self._host)
        if self._checkout is not None:
            self._checkout.use(self._host)

    def change_output(self, folder: StrPath) -> None:
        """Write the files of later runs to another folder.

        Results so far go: the cached ones name files of the folder before, and those in the temp folder add up.
        """
        self.output = self._host.output = Path(folder)
        self._cache = Cache()
        for path in Path(self._temp.name).iterdir():
            if path == self._host.cache:
                continue  # the account has no other place for it
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release results and temporary files."""
        self._cache = Cache()
        end_started_ranks()
        self._temp.cleanup()

    def check_device(self) -> None:
        """Accept the chosen devices; torch is only loaded for one that may not be there.

        Raises:
            PiyingError: torch cannot use it here.
        """
        if self._host.chosen_device not in ("auto", "cpu"):
            self._host.device()
        self._host.second_device()

    def one_pass(self) -> AbstractContextManager[None]:
        """Within it, each models folder is listed once."""
        return self._host.one_pass()

    def definitions(self) -> ObjectInfo:
        """Return the definitions of all node classes, as they are now: lists of files change."""
        self._take_over()
        unusable: dict[str, str] = {}
        with self.one_pass():
            info = object_info(self.classes, self.titles, unusable)
        new = sorted(
            f"{name} ({self._origins.get(name, 'ComfyUI')})" for name in unusable.keys() - self._unusable.keys()
        )
        if new:
            log.warning("Left out, since their declarations fail: %s.", ", ".join(new))
        self._unusable |= unusable
        return info

    def prepare(
        self,
        source: StrPath | Mapping[str, Any],
        *,
        set: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        seed: int | str | None = None,
        info: ObjectInfo | None = None,
    ) -> Workflow:
        """Return a workflow with values written into it.

        Args:
            source: a workflow file of any kind, or decoded JSON of either form.
            set: {"NODE.INPUT": value}; NODE is an id, a title or a class.
            prompt: for the one node that takes a prompt of its own.
            seed: for every seed.
            info: node definitions; by default those of the session.

        Raises:
            WorkflowError: the file cannot be read, or a value has no place to go.
        """
        info = info or self.definitions()
        with self._naming_failed_packs():
            workflow = prepared_workflow(source, info, self.titles, values=set or {}, prompt=prompt, seed=seed)
        if self._checkout is None:
            return workflow
        return replace(workflow, api=self._checkout.on_prompt(workflow.api, workflow.extra_pnginfo))

    def convert(
        self,
        source: StrPath,
        *,
        set: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        seed: int | str | None = None,
        info: ObjectInfo | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the UI form of a workflow of others in nodes of the pack, and what it could not carry over.

        `info` are definitions of the others' nodes, beside those that the pack knows of itself.

        Raises:
            WorkflowError: the file cannot be read, or is no workflow that the pack can make.
        """
        # Not at the top: only this writes workflows for the browser.
        from .ui_write import to_ui

        own = self.definitions()
        converters = [each for each in self.classes.values() if hasattr(each, "convert_workflow")]
        foreign = {name: each for made in converters for name, each in made.foreign_definitions().items()}
        known = foreign | own | (info or {})
        workflow = read_workflow_file(Path(source), known, keep_unknown=True)
        graph = workflow.graph(self.titles)
        used = {node.class_type for node in graph.values()}
        if used & NODE_CLASS_MAPPINGS.keys() and used <= CLASSES.keys():
            raise WorkflowError(f"{source}: all its nodes are Piying's or run with them: there is nothing to convert.")
        workflow = workflow.with_values(
            find_assignments(graph, known, values=set or {}, prompt=prompt, seed=seed), known
        )
        refused = []
        for each in converters:
            try:
                api, notes = each.convert_workflow(workflow.api, own)
                return to_ui(api, own), notes
            except PiyingError as error:
                refused.append(str(error))
        raise WorkflowError(f"{source}: {' '.join(refused)}")

    def check(
        self, workflow: Workflow, partial: bool = False, info: ObjectInfo | None = None
    ) -> tuple[Graph, list[str], list[NodeError]]:
        """Return the graph, the output nodes to run, and what is wrong with the others.

        `info` are definitions of the session just asked for: asking looks through the model folders.

        Raises:
            WorkflowError: nothing can be run.
            InvalidGraph: something is wrong, and `partial` is not given or no output is left.
        """
        graph = workflow.graph(self.titles)
        with self._naming_failed_packs(), self.one_pass():
            info = info or self.definitions()
            # Of a node that is not here, a server's definition says what it gives.
            absent: dict[str, Any] = {
                name: SimpleNamespace(RETURN_TYPES=each["output"]) for name, each in info.items() if "output" in each
            }
            validation = validate_graph(graph, info, {**absent, **self.classes})
        if validation.errors and not (partial and validation.roots):
            raise InvalidGraph(validation.errors)
        return graph, validation.roots, validation.errors

    @contextmanager
    def _naming_failed_packs(self) -> Iterator[None]:
        """Add the packs and classes that could not be loaded to an error about classes that are not known.

        The class may be theirs, and the warning is long past.
        """
        try:
            yield
        except UnknownClassesError as error:
            missing = {node.class_type for node in error.nodes}
            reasons = [f"{name}: {self._unusable[name]}." for name in sorted(missing & self._unusable.keys())]
            if not reasons and not self._failed_packs:
                raise
            raise WorkflowError(" ".join([str(error), *reasons, *self._failed_packs])) from error

    def plan(self, graph: Graph, roots: list[str], *, formats: bool = False) -> list[NodePlan]:
        """Return what the samplers of a checked graph would need.

        Args:
            formats: whether in each weight format, in place of the plan for the files that are there.

        Raises:
            WorkflowError: no node can tell.
            PiyingError: a model or the device cannot be used.
        """
        self._take_over()
        with self.one_pass():
            return plan_graph(graph, roots, self.classes, "plan_formats" if formats else "plan_memory")

    def device(self) -> str:
        """Return the torch device that runs compute on."""
        return self._host.device()

    def execute(
        self, workflow: Workflow, graph: Graph, roots: list[str], errors: Sequence[NodeError] = ()
    ) -> Finished:
        """Run output nodes of a checked graph.

        Raises:
            NodeFailed: a node raised.
            PiyingError: the device cannot be used.
        """
        # Not at the top: --check and --export-api do without it, and it takes seconds to load.
        import torch

        self._take_over()
        # Devices that cannot be used are reported before the first node runs.
        get_host().device()
        get_host().second_device()
        hidden = Hidden(prompt=workflow.api, extra_pnginfo=workflow.extra_pnginfo)
        with torch.inference_mode():
            results = Executor(self.classes, self.display, self._cache, self._around).run(graph, roots, hidden)
        return Finished(graph, results, self._saved_files(results), list(errors))

    def _around(self, node: Node, index: int) -> AbstractContextManager[None]:
        return nullcontext() if self._checkout is None else self._checkout.call_context(node.id, index)

    def _saved_files(self, results: dict[str, Result]) -> list[Path]:
        """Return the output files that nodes report, under whatever key: packs have keys of their own."""
        entries = [entry for result in results.values() for shown in result.ui.values() for entry in shown]
        saved = [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "output"]
        files = dict.fromkeys(
            self.output / str(entry.get("subfolder") or "") / str(entry["filename"])
            for entry in saved
            if entry.get("filename")
        )
        for file in files:
            if not file.exists():
                log.warning("%s: a node says that it saved this file, which is not there.", file)
        return [file for file in files if file.exists()]

    def run(
        self,
        source: StrPath | Mapping[str, Any],
        *,
        set: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        partial: bool = False,
    ) -> Finished:
        """Prepare, check and execute; see these for arguments and errors."""
        with self.one_pass():
            info = self.definitions()
            workflow = self.prepare(source, set=set, prompt=prompt, seed=seed, info=info)
            graph, roots, errors = self.check(workflow, partial, info)
        return self.execute(workflow, graph, roots, errors)


def check_writable(folder: Path) -> None:
    """Make the output folder and try it, before minutes go into sampling.

    Raises:
        WorkflowError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".piying-"):
            pass
    except OSError as error:
        raise WorkflowError(
            f"--output {folder}: cannot be written to ({error.strerror}). Choose another folder."
        ) from error


def run(
    source: StrPath | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    partial: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Finished:
    """Run a workflow once.

    Args:
        source: a workflow file of any kind, or decoded JSON of either form.
        set, prompt, seed: values, see `Session.prepare`.
        partial: run the outputs that are valid even where others are not, as ComfyUI does.
        on_event: called with what `--json` prints, such as {"event": "progress", "value": 3, …}.
        options: folders, device and packs, see `Session`.

    Raises:
        WorkflowError: the workflow or a value cannot be used.
        NodeFailed: a node raised; the original exception is its `cause`.
    """
    display = EventDisplay(on_event) if on_event else None
    session = Session(display=display, **options)
    try:
        return session.run(source, set=set, prompt=prompt, seed=seed, partial=partial)
    finally:
        session.close()
