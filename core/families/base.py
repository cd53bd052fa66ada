"""Model families: the object with which one family of models describes itself.

What lists, recognises, chooses, plans, loads, downloads or shows models asks this object, through
`registry.py`. A family lives in a package of its own, `core/<family>/`, and is registered in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..catalog.installed_model import BUILT_IN
from ..quantization.policy import NOTHING_CAST, CastRules

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..parallel.cards import Cards
    from ..parallel.ways import Split
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase

Size = tuple[int, int]
LORA_COMPONENT = "transformer"  # the component that LoRAs change
SECOND_EXPERT = "transformer_2"  # which takes over from it in the later steps of models that have two


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a family's models, such as the transformer.

    Attributes:
        name: `transformer`, `text_encoder`, `text_encoder_2`, `vae` or `prompt_model`: the folder it has in a
            diffusers model.
        classes: the diffusers or transformers classes that it may be.
        model_types: for text encoders and language models {transformers' model_type: class}, for configurations
            that name the class of a larger model.
        rules: its lists of blocks, the unit of streaming, and which of their layers may be stored in fewer bits.
        layout_kind: the kind of the layouts that hold it; "" where that is its own kind.
        optional: whether there are models without it.
    """

    name: str
    classes: tuple[str, ...]
    model_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    rules: CastRules = NOTHING_CAST
    layout_kind: str = ""
    optional: bool = False

    @property
    def kind(self) -> str:
        """The kind of component, whatever its number in the model: that of `text_encoder_2` is `text_encoder`."""
        return self.name.removesuffix("_2")


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on, or published with.

    Attributes:
        settings: values of the widgets of its sampler.
        sizes: (width, height) pairs to offer.
        areas: the smallest and the largest number of pixels that it makes something of; None: any larger one.
        frames: the length of a video beyond which it repeats itself; None for images.
    """

    settings: Mapping[str, float] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()
    areas: tuple[int, int | None] = (0, None)
    frames: int | None = None

    @property
    def words(self) -> str:
        """Return "832×480, 81 frames", for use in a sentence."""
        words = f"{self.settings['width']}×{self.settings['height']}"
        return f"{words}, {self.settings['num_frames']} frames" if "num_frames" in self.settings else words


@dataclass(frozen=True, eq=False, repr=False)
class ModelFamily:
    """What a family says of itself; its methods say what depends on a run.

    Attributes:
        key: its name in the manifest, in folders and in records.
        title: for people, as in "No … model is installed".
        index_classes: the classes that its folders name in model_index.json or config.json.
        model_types: {transformers' model_type: class}, for classes whose config.json names one.
        folder: where its folders go, below the models folder.
        socket: the type of its handle on a ComfyUI wire; "" for models that are no input of a sampler.
        loader: the display name of the node that loads it.
        components: in the order in which a plan names them.
        required: the components and tokenizers without which a model in single files does not run.
        missing: {component or tokenizer: what to put where, in a few words} for what single files may lack.
        remedy: what to do where something is missing, as the beginning of a sentence.
        lora_widths: {width of the transformer: the model a LoRA of that width was made for}.
        published: what its models were trained on.
        toy: what its built-in model was trained on.
        planned_inputs: the widgets of its sampler that a memory plan depends on.
        can_share: whether a run can be shared between cards, see `splits`.
    """

    key: str
    title: str
    index_classes: tuple[str, ...]
    model_types: Mapping[str, str] = field(default_factory=dict)
    folder: str = "diffusers"
    socket: str = ""
    loader: str = ""
    components: tuple[ComponentSpec, ...] = ()
    required: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""
    lora_widths: Mapping[int, str] = field(default_factory=dict)
    published: TrainedOn = field(default_factory=TrainedOn)
    toy: TrainedOn = field(default_factory=TrainedOn)
    planned_inputs: tuple[str, ...] = ()
    can_share: bool = False

    def __repr__(self) -> str:
        return f"<family {self.key}>"

    @property
    def input_name(self) -> str:
        """The name of an input that takes its handle, where a node has one for each family."""
        return self.socket.lower()

    @property
    def rules(self) -> dict[str, CastRules]:
        """Which layers of each component may be stored in fewer bits."""
        return {spec.name: spec.rules for spec in self.components}

    def rules_of(self, model: InstalledModel) -> dict[str, CastRules]:
        """Return the same for the components that a model has."""
        return {one.name: one.rules for one in self.components if not one.optional or model.has(one.name)}

    def layouts(self) -> tuple[Layout, ...]:
        """Return how its components lie in single files."""
        return ()

    def descriptions(self) -> Mapping[str, Description]:
        """Return {class: which tensors it has}, for those classes of its components that are described."""
        return {}

    def trained_on(self, model: str, found: InstalledModel | None = None) -> TrainedOn:
        """Return what the model of that name was trained on; `found` is where it is, if it is here."""
        del found
        return self.toy if model == BUILT_IN else self.published

    def reads(self, model: InstalledModel) -> str:
        """Return what a model's results are made from, for use in a sentence; "" where all models read the same."""
        del model
        return ""

    def frames_at_once(self, work: Any) -> int:
        """Return how many frames of a work are predicted together, all of them unless a family can part them."""
        return int(work.num_frames)

    def cautions(self, model: str, work: Any, found: InstalledModel | None = None) -> list[str]:
        """Return sentences on what the model of that name was not trained to do of a work; for `found` see above."""
        trained = self.trained_on(model, found)
        if not trained.sizes:
            return []
        size = f"{work.width}×{work.height}"
        name = "the built-in toy model" if model == BUILT_IN else model
        (least, most), area = trained.areas, work.width * work.height
        said = []
        if area < least:
            said.append(f"{size} is far below what {name} was trained on ({trained.words}): expect noise.")
        if most is not None and area > most:
            said.append(f"{size} is far above what {name} was trained on ({trained.words}): expect noise.")
        if trained.frames is not None and (count := self.frames_at_once(work)) > trained.frames:
            said.append(f"num_frames is {count}, and {name} was trained on {trained.frames}: expect repetitions.")
        return said

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return the family's models that lie in single files.

        Args:
            files: the files of weights in the models folders.
            folders: the family's models in folders, which lend their components.
        """
        del files, folders
        return []

    def beside(
        self, transformer: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the components and tokenizers besides a transformer that are here, and where.

        Args:
            transformer: the files or the folder that hold it; what is in them too, or near them, comes first.
            files, folders: see `single_file_models`.
        """
        del transformer, files, folders
        return {}

    def needs(self, transformer: SingleFile, files: FileCatalog) -> tuple[str, ...]:
        """Return the components and tokenizers that the model of a transformer in a file does not run without."""
        del transformer, files
        return self.required

    def place_problem(self, place: Path) -> str:
        """Return why a model's folder, or file with its tokenizer inside, cannot be used; else "".

        Args:
            place: its weights and tokenizers are in order.
        """
        del place
        return ""

    def why_unusable(self, file: str, files: FileCatalog) -> str | None:
        """Return why the file of that name, which looks like one of the family's, is not offered; None if it is."""
        del file, files
        return None

    def check_inputs(self, inputs: Mapping[str, Any], model: InstalledModel) -> None:
        """Accept the inputs of the family's sampler, as far as they are known, for a model.

        Raises:
            PiyingError: the model cannot take them.
        """
        del inputs, model

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> Any:
        """Return what a run has to do, for `phases`.

        Args:
            inputs: of the family's sampler, as far as they are known; the others count with their defaults. Inputs
                that no plan depends on are left out.
            handle: the model that is asked for.
        """
        raise NotImplementedError(f"{self.title} models are not planned for.")

    def work_of(self, model: InstalledModel, work: Any) -> Any:
        """Return a work with what a model's own files say of it."""
        del model
        return work

    def phases(self, components: Mapping[str, Component], work: Any) -> tuple[Phase, ...]:
        """Return the phases of a run, for the planner."""
        raise NotImplementedError(f"{self.title} models are not planned for.")

    def splits(
        self, components: Mapping[str, Component], work: Any, cards: Cards, machine: Machine
    ) -> Sequence[Split]:
        """Return the ways to share a work between cards, that without sharing first."""
        del components, work, cards, machine
        return ()

    def fitting(
        self, components: Mapping[str, Component], machine: Machine, handle: ModelHandle, work: Any
    ) -> Sequence[Any]:
        """Return smaller works that fit a machine on which `work` does not, where there are any."""
        del components, machine, handle, work
        return ()

    def what_fits(self, found: Sequence[Any], work: Any) -> str:
        """Return a sentence on what `fitting` has found in place of `work`."""
        raise NotImplementedError(f"{self.title} models are not planned for.")
