"""Hub sessions: which hubs one command asks, in which order, and the listings it has had from them."""

from __future__ import annotations

from functools import cached_property

from ..errors import PiyingError
from ..http import RetryPolicy
from .hubs import Hub, HubFile, HuggingFace, ModelScope
from .manifest import ListedFile, Source
from .transfer import server_answers

AUTO = "auto"
PROBE_SECONDS = 5.0


def hugging_face() -> HuggingFace:
    """Return Hugging Face through its own library, or where that is not there through the standard library."""
    # install.py downloads before anything is installed, so the library may be missing.
    try:
        from .huggingface_library import HuggingFaceLibrary
    except ImportError:
        return HuggingFace()
    return HuggingFaceLibrary()


def choose_hubs(choice: str) -> list[Hub]:
    """Return the hubs to ask, in order: the chosen one alone, or all, with the first that answers in front.

    Raises:
        PiyingError: none answers.
    """
    every: tuple[Hub, ...] = (hugging_face(), ModelScope())
    hubs = {hub.key: hub for hub in every}
    if choice != AUTO:
        return [hubs[choice]]
    for first in hubs.values():
        if server_answers(first.endpoint, PROBE_SECONDS):
            return [first, *(hub for hub in hubs.values() if hub is not first)]
    places = " nor ".join(hub.endpoint for hub in hubs.values())
    raise PiyingError(
        f"Neither {places} answers. Check the network and the proxy. For a machine without a network make a list of "
        "what to carry with --print-files, on one that has one."
    )


class HubSession:
    """The hubs of one command, asked no earlier than needed, and once for each repository."""

    def __init__(self, choice: str = AUTO, policy: RetryPolicy | None = None) -> None:
        self.policy = policy or RetryPolicy()
        self._choice = choice
        self._listings: dict[tuple[str, Source], list[HubFile]] = {}

    @cached_property
    def hubs(self) -> list[Hub]:
        """The hubs to ask, in order."""
        return choose_hubs(self._choice)

    def sources(self, file: ListedFile) -> list[tuple[Hub, Source]]:
        """Return the hubs that keep a file.

        Raises:
            PiyingError: the chosen one does not.
        """
        found = [(hub, file.sources[hub.key]) for hub in self.hubs if hub.key in file.sources]
        if not found:
            titles = " and ".join(hub.title for hub in self.hubs)
            raise PiyingError(f"{file.path} is not on {titles}. Leave --source out.")
        return found

    def listing(self, hub: Hub, source: Source) -> list[HubFile]:
        """Return the files of a repository; raises DownloadRefused."""
        key = (hub.key, Source(source.repo, source.revision))
        if key not in self._listings:
            self._listings[key] = hub.listing(source, self.policy)
        return self._listings[key]
