"""Settings: what a server's owner has chosen, for its own process and those of its workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runner.session import Session
from .limits import Limits, Tokens


@dataclass(frozen=True)
class Folders:
    """What the sessions of a server and its workers may use; each machine has it under the same names.

    Attributes:
        input: where workflows may read files.
        models: where models are, before the pack's own.
        results: a folder, or an address for fsspec.
        cache: where finished windows of long videos are kept; None for each machine's own.
        custom_nodes, comfyui: as the options of the command line; the server's owner names them, never a job.
    """

    input: str
    models: tuple[str, ...]
    results: str
    cache: str | None = None
    custom_nodes: tuple[str, ...] = ()
    comfyui: str | None = None

    def session(self, output: Path, **options: Any) -> Session:
        """Return a session with them."""
        return Session(
            input=self.input,
            output=output,
            models=self.models,
            custom_nodes=self.custom_nodes,
            comfyui=self.comfyui,
            cache=self.cache,
            **options,
        )


@dataclass(frozen=True)
class Settings:
    """What a server's owner has chosen; it is passed to another process as JSON.

    Attributes:
        state: the folder of journal, audit log and log.
        folders: see `Folders`.
        workflows: folders of workflows that can be named.
        servers: addresses that workflows may have asked.
        tokens, limits: see `limits`.
        retries: how many workers a job may lose and be given to another.
        keep: jobs that are over, and their results, beyond which the oldest are deleted.
    """

    state: str
    folders: Folders
    workflows: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)
    limits: Limits = field(default_factory=Limits)
    retries: int = 1
    keep: int = 10_000

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return what `to_json` wrote."""
        values = json.loads(text)  # which has lists where there were tuples
        folders: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in values["folders"].items()
        }
        made = {
            "folders": Folders(**folders),
            "tokens": Tokens(**values["tokens"]),
            "limits": Limits(**values["limits"]),
        }
        return cls(**values | made | {name: tuple(values[name]) for name in ("workflows", "servers")})
