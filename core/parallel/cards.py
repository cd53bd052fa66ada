"""Cards that a run is shared between, and how: what a host, a plan and the command line say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from ..planner.machine import Machine

Way = Literal["off", "prompts", "sequence"]
Asked = Literal["auto", "prompts", "sequence", "off"]
ASKED: tuple[Asked, ...] = get_args(Asked)


@dataclass(frozen=True)
class Cards:
    """The cards that a run may use.

    Attributes:
        count: how many, each the like of the machine's.
        asked: one of `ASKED`.
        link: bytes per second from one to another, as measured; 0 where they are not there to be asked.
        is_shared: whether ranks compute on one device, which then is no faster for it.
    """

    count: int
    asked: Asked = "auto"
    link: float = 0.0
    is_shared: bool = False

    def rate(self, machine: Machine) -> float:
        """Return the bytes per second from one card to another."""
        return self.link or machine.pcie

    def link_in_words(self, machine: Machine) -> str:
        """Return the link for people."""
        rate = f"{self.rate(machine) / 1e9:.1f} GB/s"
        return f"{rate} from card to card as measured" if self.link else f"{rate} from card to card assumed (PCIe)"


@dataclass(frozen=True)
class CardSplit:
    """How a work is shared, as its phases have to know; see `Cards`."""

    way: Way = "off"
    count: int = 1
    link: float = 1.0
    is_shared: bool = False

    @property
    def holders(self) -> int:
        """Between how many cards the tokens of a prediction are shared."""
        return self.count if self.way == "sequence" else 1


ONE_CARD = CardSplit()
