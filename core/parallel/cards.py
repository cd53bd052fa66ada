"""Cards that a run is shared between, and how: what a host, a plan and the command line say of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..accelerator import available_devices, best_device, card_module, checked_device
from ..errors import PiyingError
from .second_card import second_card

if TYPE_CHECKING:
    from ..catalog.selection import ModelHandle
    from ..host.base import DevicePolicy
    from ..planner.machine import Machine

Way = Literal["off", "prompts", "sequence"]
Asked = Literal["auto", "prompts", "sequence", "off"]
ASKED: tuple[Asked, ...] = get_args(Asked)
SHARE_VARIABLE = "PIYING_SHARE_DEVICE"  # set, ranks that a loader asks for share one device, to try them


@dataclass(frozen=True)
class Cards:
    """The cards that a run may use.

    Attributes:
        count: how many, each the like of the machine's; 1 where more were asked for than there are.
        asked: one of `ASKED`.
        link: bytes per second from one to another, as measured; 0 where they are not there to be asked.
        is_shared: whether ranks compute on one device, which then is no faster for it.
        devices: the torch devices of ranks that this process starts beside itself, its own first; none where torchrun
            has started them, or where only plans are made.
        vram: bytes of the smallest of them; 0 where they are alike.
        note: a sentence on what was asked for and is not here; "" where all is.
    """

    count: int
    asked: Asked = "auto"
    link: float = 0.0
    is_shared: bool = False
    devices: tuple[str, ...] = ()
    vram: int = 0
    note: str = ""

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
# Bytes per second between the devices of ranks that ran in this process before.
measured_links: dict[tuple[str, ...], float] = {}


def cards_of(handle: ModelHandle, policy: DevicePolicy) -> Cards | None:
    """Return the cards of a run: those that the process was started on, else those that the model's loader asks for.

    A second card for text encoders and VAE is none of them.

    Args:
        policy: knows the first of them.

    Returns:
        None where it is one and no more were asked for.
    """
    rules, wanted, asked = policy.memory_rules(), handle.cards, handle.parallel
    if rules.cards is not None or wanted <= 1:
        return rules.cards
    if rules.imagined and rules.vram is not None:
        return Cards(wanted, asked)
    device = policy.device()
    others = devices_from(device, second_card(handle.second_device, policy).device)
    found = [device] * wanted if SHARE_VARIABLE in os.environ else others[:wanted]
    if len(found) == wanted:
        return _local(found, asked)
    one = "the processor alone" if device == "cpu" else "1 card"
    here = f"{len(found)} cards" if len(found) > 1 else one
    note = f"cards is {wanted}, and this machine has {here}: the run goes on with that."
    return replace(_local(found, asked), note=note) if len(found) > 1 else Cards(1, asked, note=note)


def local_cards(count: int, asked: Asked, device: str, second: str = "") -> Cards:
    """Return the cards of ranks that this process is to start, on a device that was named or those after it.

    Args:
        device: `auto`, or a torch device; on the CPU, and on a card that is named with its number, they share it.
        second: a card that is none of them; "" for none.

    Raises:
        PiyingError: there are fewer.
    """
    first = best_device() if device == "auto" else checked_device(device)
    if first == "cpu" and device == "auto":
        raise PiyingError(
            f"--cards {count}: this machine has no card. To try it on the processor, which is no faster, add "
            "--device cpu."
        )
    is_shared = first == "cpu" or (device == first and device.startswith("cuda:"))
    found = [first] * count if is_shared else devices_from(first, second)[:count]
    if len(found) < count:
        raise PiyingError(f"--cards {count}: this machine has {len(found)}. Choose that, or fewer.")
    return _local(found, asked)


def devices_from(device: str, second: str = "") -> list[str]:
    """Return a device and the others of its kind here that ranks can run on, but for the second card of the run."""
    if not device.startswith("cuda"):
        return [device]
    return [device, *(one for one in available_devices() if one.startswith("cuda") and one not in (device, second))]


def _local(devices: list[str], asked: Asked) -> Cards:
    places, sizes = tuple(devices), set()
    for device in places:
        module = card_module(device)
        sizes |= set() if module is None else {int(module.get_device_properties(device).total_memory)}
    smallest = min(sizes) if len(sizes) > 1 else 0
    is_shared = len(set(places)) < len(places)
    return Cards(len(places), asked, measured_links.get(places, 0.0), is_shared, devices=places, vram=smallest)
