"""Ways to share one run between cards: which there are for a work, what each is predicted to take, and which is taken.

Pure arithmetic, as the plan is: `--plan --cards N` asks the same for cards that are not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import PiyingError
from ..planner.plan_types import amount
from ..planner.report import duration
from .cards import Cards, CardSplit, Way

if TYPE_CHECKING:
    from ..planner.machine import Machine
    from ..planner.phases import Component, Phase
    from ..planner.plan_types import Plan

WORDS: dict[Way, str] = {
    "off": "all on the first card",
    "prompts": "prompt and negative prompt on different cards, bit for bit as in passes of their own on one",
    "sequence": "each card a share of the tokens, as on one card but for rounding",
}
SHORT_WORDS: dict[Way, str] = {"off": "one card", "prompts": "prompts", "sequence": "sequence"}
ONE_BATCH = "One card takes both in one batch, which has other last bits."
# The predicted gain for which the exact way is passed over.
MATERIALLY_FASTER = 1.05


@dataclass(frozen=True)
class Split:
    """One way to share a work.

    Attributes:
        work: it, as its phases then are.
        phases: what the run then consists of for each card.
        note: a sentence on it; "" where there is nothing to say.
        why_not: why it cannot be shared so, as a part of a sentence; "" where it can.
    """

    way: Way
    work: Any
    phases: tuple[Phase, ...]
    note: str = ""
    why_not: str = ""


class CardShare(NamedTuple):
    """What one card has of a step.

    Attributes:
        branches: predictions that it makes at most.
        tokens: those that it has between the blocks.
        arithmetic: its share of all of it, 0..1; 1 where the cards are one.
    """

    branches: int
    tokens: int
    arithmetic: float


def share_of(split: CardSplit, branches: int, tokens: int) -> CardShare:
    """Return what the card that has most has of a step of so many predictions of so many tokens."""
    if split.way == "prompts":
        own = math.ceil(branches / split.count)
        return CardShare(own, tokens, 1.0 if split.is_shared else own / branches)
    if split.way == "sequence":
        return CardShare(branches, math.ceil(tokens / split.count), 1.0 if split.is_shared else 1 / split.count)
    return CardShare(branches, tokens, 1.0)


def share_divides(heads: int, count: int) -> bool:
    """Return whether so many cards have equally many attention heads each."""
    return heads > 0 and heads % count == 0


def attention_bytes(transformer: Component, count: int, tokens: int, heads: int) -> float:
    """Return the bytes of all tokens that self-attention exchanges in a pass of one prediction, in 16 bits.

    In each block these are queries, keys, values and their result, of which each card keeps its own part; or the keys
    and values of all others. See `parallel.sequence`.
    """
    of_a_card = 4 / count if share_divides(heads, count) else 2
    return len(transformer.blocks) * of_a_card * 2 * tokens * transformer.hidden


def exchange(split: CardSplit, branches: int, *, given: float, made: float, attention: float) -> float:
    """Return the seconds in which a card waits for what it sends, or receives, in a step of so many predictions.

    Args:
        given: bytes that the predictions are made from.
        made: bytes of each prediction.
        attention: see `attention_bytes`.
    """
    if split.way == "prompts":
        return (given + branches * made) / split.link
    if split.way == "sequence":
        return branches * (attention + made) * (split.count - 1) / split.count / split.link
    return 0.0


def splits_of(
    work: Any,
    predictions: int,
    cards: Cards,
    machine: Machine,
    *,
    phases: Callable[[Any], tuple[Phase, ...]],
    in_one_batch: bool = False,
) -> tuple[Split, ...]:
    """Return the ways to share a work of so many predictions a step between cards, that without sharing first.

    Args:
        work: a dataclass with a `split`.
        phases: returns the phases of a work.
        in_one_batch: whether one card makes all predictions of a step in one batch.
    """
    idle = cards.count - predictions
    alone = "cfg is 1, so that a step has one prediction and there is nothing to share" if predictions < 2 else ""
    waiting = f"A step has {predictions} predictions: {idle} of {cards.count} cards wait." if idle > 0 else ""
    notes = [*([ONE_BATCH] if in_one_batch else []), *([waiting] if waiting else [])]
    found = []
    ways: tuple[Way, ...] = ("off", "prompts", "sequence")
    for way in ways:
        split = CardSplit(way, cards.count, cards.rate(machine), cards.is_shared)
        shared = work if way == "off" else replace(work, split=split)
        note, why_not = (" ".join(notes), alone) if way == "prompts" else ("", "")
        found.append(Split(way, shared, phases(shared), note, why_not))
    return tuple(found)


def on_one_card(title: str, cards: Cards) -> str:
    """Return a sentence on models of a family that has no way to share a run."""
    return f"{title} runs on the first of {cards.count} cards: there is no way yet to share it."


def choose_split(splits: Sequence[Split], cards: Cards, machine: Machine, planned: Callable[..., Plan]) -> Split:
    """Return the way to take, its reason among the notes of what samples.

    With `auto` it is the fastest that fits; one that is exact counts as no slower where it is nearly so.

    Args:
        splits: that without sharing first.
        planned: returns the plan of phases.

    Raises:
        PiyingError: the way that was asked for has nothing to share in this work.
    """
    found = {split.way: split for split in splits}
    asked = cards.asked
    if asked != "auto" and found[asked].why_not:
        others = [way for way in found if not found[way].why_not and way != asked]
        raise PiyingError(f"--parallel {asked}: {found[asked].why_not}. Choose {' or '.join(others)}, or auto.")
    plans = {split.way: planned(split.phases) for split in splits if not split.why_not}
    taken = asked if asked != "auto" else _fastest(plans)
    times = "; ".join(_predicted(way, plan, machine) for way, plan in plans.items())
    reason = "as asked for" if asked != "auto" else "the fastest that fits, and of nearly equal ones the exact one"
    sentences = [
        f"{cards.count} cards: {WORDS[taken]}: {reason}.",
        f"By plan: {times} ({cards.link_in_words(machine)}).",
    ]
    sentences += [found[taken].note] if found[taken].note else []
    sentences += [f"Not {SHORT_WORDS[one.way]}: {one.why_not}." for one in splits if one.why_not]
    sentences += _ram_note(plans[taken], cards, machine)
    if cards.is_shared:
        sentences.append("All ranks compute on one device, which makes none of it faster: this is for trying.")
    return _noted(found[taken], " ".join(sentences))


def _predicted(way: Way, plan: Plan, machine: Machine) -> str:
    """Return what a way is predicted to take, as a part of a sentence."""
    sampling = max(one.vram for one in plan.phases if one.phase.startswith("sample"))
    room = "" if machine.is_cpu else f" with {amount(sampling)} of each card while it samples"
    return f"{SHORT_WORDS[way]} about {duration(plan.seconds)}{room}{'' if plan.fits else ', which does not fit'}"


def _ram_note(plan: Plan, cards: Cards, machine: Machine) -> list[str]:
    """Return a sentence where main memory is short for ranks that are all on this machine."""
    helper = max(one.ram for one in plan.phases if one.phase.startswith("sample"))
    needed = plan.peak_ram + (cards.count - 1) * helper
    if needed <= machine.ram_free:
        return []
    return [
        f"Each rank has weights of its own: {cards.count} on one machine take up to {amount(needed)} of main memory, "
        f"of which {amount(machine.ram_free)} is free."
    ]


def _fastest(plans: dict[Way, Plan]) -> Way:
    fitting = {way: plan for way, plan in plans.items() if plan.fits}
    if not fitting:
        # The one that needs least says how much is missing.
        return min(plans, key=lambda way: plans[way].peak_vram)
    # Of equals sharing comes before not sharing: the cards are there.
    order: tuple[Way, ...] = ("prompts", "sequence", "off")
    best = min(plan.seconds for plan in fitting.values())
    return next(way for way in order if way in fitting and fitting[way].seconds <= best * MATERIALLY_FASTER)


def _noted(split: Split, note: str) -> Split:
    first = next(phase for phase in split.phases if phase.name.startswith("sample"))
    phases = tuple(replace(one, notes=(*one.notes, note)) if one is first else one for one in split.phases)
    return replace(split, phases=phases)
