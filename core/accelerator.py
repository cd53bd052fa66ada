"""Accelerators: the devices that torch can compute on here, and the torch module that speaks for one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import PiyingError

if TYPE_CHECKING:
    import torch


def card_module(device: str | torch.device) -> Any | None:
    """Return torch's module for a device with memory of its own, such as `torch.cuda` or `torch.xpu`; else None.

    These modules have the same functions for memory, streams and events, so that nothing else has to name a kind of
    device. The CPU and devices that share its memory, such as Apple's, have none.

    Args:
        device: a torch device, with its index or without.
    """
    import torch

    module = getattr(torch, torch.device(device).type, None)
    return module if hasattr(module, "mem_get_info") else None


def available_devices() -> list[str]:
    """Return the devices torch can use here, best first."""
    import torch

    if not torch.accelerator.is_available():
        return ["cpu"]
    found = torch.accelerator.current_accelerator()
    assert found is not None
    # Apple's is one, and has no number.
    numbered = [f"{found.type}:{index}" for index in range(torch.accelerator.device_count())]
    return [*(numbered if card_module(found) else [found.type]), "cpu"]


def best_device() -> str:
    """Return the device to use when the user did not choose."""
    return available_devices()[0]


def checked_device(name: str) -> str:
    """Return `name` as torch spells it; a card without a number is the first of its kind.

    Raises:
        PiyingError: torch cannot use that device here.
    """
    usable = available_devices()
    found = next((device for device in (name, f"{name}:0") if device in usable), None)
    if found is None:
        raise PiyingError(f"Device {name!r} cannot be used here. Choose one of: auto, {', '.join(usable)}.")
    return found


def empty_cache(device: str | None = None) -> None:
    """Give memory of a card that torch holds without using it back to the card; None stands for the best device."""
    module = card_module(best_device() if device is None else device)
    if module is not None:
        module.empty_cache()
