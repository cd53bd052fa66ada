"""A second card beside the one of the run: which one it is, and why one that was named is not taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..accelerator import available_devices, card_module
from ..errors import PiyingError

if TYPE_CHECKING:
    from ..host.base import DevicePolicy


class SecondCard(NamedTuple):
    """The second card of a run.

    Attributes:
        device: of torch; "" for none.
        note: a sentence on one that was named and is not taken, else "".
    """

    device: str = ""
    note: str = ""


def second_card(asked: str, policy: DevicePolicy) -> SecondCard:
    """Return the second card of a run; one that is not there leaves it without, since workflows travel.

    Args:
        asked: the device that the model's loader names; "" for what the policy says.
        policy: names one, or none.

    Raises:
        PiyingError: the one that the policy names cannot be used.
    """
    own = policy.second_device()
    if asked in ("", own):
        return SecondCard(own)
    reason = _why_not(_numbered(asked), policy.device())
    if not reason:
        return SecondCard(_numbered(asked))
    instead = f"{own} is the second card" if own else "the run has one card"
    return SecondCard(own, f"second_device {asked}: {reason}; {instead}.")


def checked_second(name: str, first: str) -> str:
    """Return `name` as torch spells it; a card without a number is the first of its kind.

    Args:
        first: the device of the run.

    Raises:
        PiyingError: it cannot be a second card here.
    """
    reason = _why_not(_numbered(name), first)
    if reason:
        raise PiyingError(f"--second-device {name}: {reason}. {_remedy(first)}")
    return _numbered(name)


def other_cards(first: str) -> list[str]:
    """Return the cards that torch can use here beside the device of the run."""
    return [device for device in available_devices() if card_module(device) is not None and device != first]


def _numbered(name: str) -> str:
    found = available_devices()
    return f"{name}:0" if name not in found and f"{name}:0" in found else name


def _why_not(name: str, first: str) -> str:
    """Return why a device is no second card, to follow its name; "" where it is one."""
    if name == "cpu":
        return "the CPU is no card, and what fits no card runs there by itself"
    if name == first:
        return "it is the first card"
    if name not in other_cards(first):
        return f"there is no such card here ({', '.join(available_devices())})"
    if card_module(first) is None:
        return f"the run computes on {first}, and has no first card"
    rank = _rank_on(name)
    return "" if rank is None else f"rank {rank} computes there"


def _rank_on(device: str) -> int | None:
    """Return the rank on this machine whose card it is; None where it is nobody's."""
    # Not at the top: a run without ranks does without torch.distributed.
    from .group import current_group

    group = current_group()
    if group is None:
        return None
    here = (peer for peer in group.peers if peer.place == group.own.place and peer.device == device)
    return next((peer.rank for peer in here), None)


def _remedy(first: str) -> str:
    others = [device for device in other_cards(first) if card_module(first) is not None and _rank_on(device) is None]
    return f"Choose one of: {', '.join(others)}; or leave it out." if others else "Leave it out."
