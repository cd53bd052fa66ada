"""Rules of sampling: nothing of an example is copied, nothing is said twice, and an answer has the asked length."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.executor.model_cache import evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.prompting import sampling
from piying.core.prompting.family import PROMPT
from piying.core.prompting.generation import load_model, load_processor
from piying.core.prompting.language import is_finished, word_count
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat
from piying.core.prompting.request import ExpandRequest
from piying.core.prompting.sampling import Writing

EXAMPLE = "Two white cranes dance on a lake at dawn, and rings of ripples spread around their thin legs."


@pytest.fixture
def host(models):
    yield HeadlessHost(models=[models], chosen_device="cpu")
    evict_models()


def answer(host, chat, tokens=120):
    found = []

    def use(write):
        found.append(write(chat, None, ExpandRequest("a red ball", max_new_tokens=tokens, seed=3)))
        return ""

    LocalModel(ModelHandle(PROMPT), host).run(use, tokens)
    return found[0]


def writing(host, start=0, **chat):
    model = LocalModel(ModelHandle(PROMPT), host)
    chat = Chat("S", **{"user": "a red ball", **chat})
    return Writing.of(load_model(model.found, torch.float32, host), load_processor(model.found), chat, start)


def runs(writing, text, size):
    return set(sampling._runs(writing._tokens(text), size))


def ruled_out(writing, said):
    """Return the tokens that cannot follow those said, one after the other as `generate` has them."""
    rules = writing.rules()
    tokens = writing._tokens(said)
    for count in range(len(tokens) + 1):
        logits = torch.zeros(1, len(writing.processor.tokenizer))
        for rule in rules:
            logits = rule(torch.tensor([tokens[:count]], dtype=torch.long), logits)
    return set(logits.isneginf()[0].nonzero().flatten().tolist())


def test_an_example_is_not_written_off(host):
    free = answer(host, Chat("Rewrite.", "a red ball")).text
    written = answer(host, Chat("Rewrite.", "a red ball", examples=(("a ball", free),))).text
    one = writing(host)
    assert len(runs(one, free, sampling.COPIED_RUN)) > 3
    assert not runs(one, free, sampling.COPIED_RUN) & runs(one, written, sampling.COPIED_RUN)


def test_a_run_is_begun_and_not_ended(host):
    one = writing(host, examples=(("cranes", EXAMPLE),))
    tokens = one._tokens(EXAMPLE)
    said = one.processor.tokenizer.decode(tokens[: sampling.COPIED_RUN - 1])
    assert tokens[sampling.COPIED_RUN - 1] in ruled_out(one, said)
    assert tokens[sampling.COPIED_RUN - 1] not in ruled_out(writing(host), said)
    # The line may have the same words.
    assert tokens[sampling.COPIED_RUN - 1] not in ruled_out(
        writing(host, user=EXAMPLE, examples=(("cranes", EXAMPLE),)), said
    )


def test_nothing_is_said_twice_but_what_is_kept(host):
    said = "a red ball rolls. a red ball"
    last = writing(host)._tokens("a red ball rolls")[3]
    examples = (("cranes", EXAMPLE),)
    assert last in ruled_out(writing(host, examples=examples), said)
    assert last not in ruled_out(writing(host, examples=examples, verbatim=("a red ball rolls",)), said)
    # The beginning that was given has been said too.
    assert last in ruled_out(writing(host, examples=examples, opening="a red ball rolls"), "a red ball")


def test_an_answer_is_one_paragraph(host):
    one = writing(host, length=(5, 9))
    tokenizer = one.processor.tokenizer
    (turn,) = {tokenizer.convert_tokens_to_ids("<|im_start|>")} - set(one.ends)
    assert turn in one.processor.breaks
    assert all(
        "\n" in tokenizer.decode([token]) or token in tokenizer.added_tokens_decoder for token in one.processor.breaks
    )
    assert set(one.processor.breaks) - set(one.ends) <= ruled_out(one, "a red ball")
    # Before its first word there may be thinking.
    assert turn not in ruled_out(one, "")


def test_an_answer_ends_within_the_length_that_is_asked_for(host):
    short = answer(host, Chat("Rewrite.", "a red ball"))
    assert short.finished
    words = word_count(short.text)
    chat = Chat("Rewrite.", "a red ball", length=(2 * words, 3 * words))
    assert word_count(answer(host, chat).text) >= 2 * words
    # What is not used does not count.
    one = writing(host, length=(4, 6), usable=lambda text: text.replace("ball", ""))
    assert set(one.ends) <= ruled_out(one, "a red ball rolls")
    assert not set(one.ends) & ruled_out(one, "a red ball rolls over snow")


def test_a_long_answer_stops_at_the_end_of_a_sentence(host):
    one = writing(host, length=(3, 5))

    def stops(text):
        return one.is_long_enough(torch.tensor(one._tokens(text)))

    assert stops("a red ball rolls fast.")
    assert not stops("a red ball rolls fast")
    assert not stops("a red ball.")
    assert not writing(host).is_long_enough(torch.tensor(one._tokens("a red ball rolls fast.")))
    assert is_finished(answer(host, Chat("Rewrite.", "a red ball", length=(1, 2))).text)
