"""The layout of a fitted prompt: which state predicts which token, and what cannot be laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fit_models import EOS, MODES, SHAPES, tiny
from stepwell.errors import StepwellError
from stepwell.latents.prompt import Problem, Target, begins, fault_of, lay_out, mode_vectors, problem_of


class Words:
    """A tokenizer of one token a word."""

    unk_token_id, eos_token_id = 0, EOS

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        known = {"question": 50, "answer": 51, "red": 2, "green": 3, "blue": 4}
        return [known.get(word, 0) for word in text.split()]


def with_words() -> Any:
    backbone = tiny()
    backbone.tokenizer = Words()
    return backbone


@pytest.mark.parametrize("name", SHAPES)
def test_states_predict_what_the_model_itself_writes_one_token_at_a_time(name: str):
    backbone, slots = tiny(name, "fp64"), 3
    targets = [Target(ids=(7, 9, 11, 4, EOS), mode="ask"), Target(ids=(5, EOS), mode="say")]
    modes = mode_vectors(backbone, MODES)
    vectors = torch.randn(2, slots, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    prompt = lay_out(backbone, targets, modes, slots)
    with torch.no_grad():
        nats = -backbone.logits(prompt.hidden(backbone, vectors)).log_softmax(-1)
        nats = nats.gather(1, prompt.tokens[:, None])[:, 0]
        wanted = []
        for row, target in enumerate(targets):
            embeds = begins(modes[target.mode], vectors[row : row + 1])
            for token in target.ids:  # each token from a run of its own over all that stands before it
                logits = backbone.model(inputs_embeds=embeds).logits[0, -1]
                wanted.append(-logits.log_softmax(-1)[token])
                embeds = torch.cat((embeds, backbone.embed(torch.tensor([[token]]))), 1)
    torch.testing.assert_close(nats, torch.stack(wanted), rtol=1e-9, atol=1e-9)
    assert prompt.counts.tolist() == [5, 2]
    assert prompt.by_row(prompt.tokens, -1).tolist() == [[7, 9, 11, 4, EOS], [5, EOS, -1, -1, -1]]


def test_a_row_is_the_same_alone_and_beside_a_longer_one():
    backbone = tiny("llama", "fp64")
    modes = mode_vectors(backbone, MODES)
    short, long = Target(ids=(5, 6, EOS), mode="say"), Target(ids=(*range(20, 34), EOS), mode="ask")
    vectors = torch.randn(2, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = lay_out(backbone, [short, long], modes, 4).hidden(backbone, vectors)
    alone = lay_out(backbone, [short], modes, 4).hidden(backbone, vectors[:1])
    torch.testing.assert_close(together[:3], alone, rtol=1e-10, atol=1e-10)


def test_modes_by_id_text_vector_and_name():
    backbone, vector = with_words(), torch.arange(32.0)
    found = mode_vectors(backbone, {"a": 7, "b": "red", "c": vector})
    table = backbone.embed(torch.tensor([[7, 2]]))[0]
    assert torch.equal(found["a"], table[0]) and torch.equal(found["b"], table[1]) and torch.equal(found["c"], vector)
    named = mode_vectors(backbone, ["question", "answer"])
    assert torch.equal(named["answer"], backbone.embed(torch.tensor([[51]]))[0, 0])
    assert not any(each.requires_grad for each in (*found.values(), *named.values()))


@pytest.mark.parametrize(
    ("modes", "said"),
    [
        ({"a": 61}, "mode `a`: 61 is not one token of the model's 61"),
        ({"a": "red green"}, "mode `a`: 'red green' is not one token"),
        ({"a": torch.zeros(31)}, "mode `a` has a vector of 31 numbers"),
        ({"a": torch.full((32,), float("nan"))}, "or one that is not finite"),
        ({"a": 5, "b": 5}, "the modes `a` and `b` have the same vector"),
        (["violet"], "has a character that the tokenizer does not know"),
    ],
)
def test_modes_that_are_none(modes: Any, said: str):
    with pytest.raises(StepwellError, match=said):
        mode_vectors(with_words(), modes)


def test_problems_from_texts():
    backbone = with_words()
    assert problem_of(backbone, "x", "red blue") == Problem(id="x", targets=(Target(ids=(2, 4, EOS), mode="text"),))
    found = problem_of(backbone, "x", {"question": ["red", "green red"], "answer": "blue"})
    assert [(t.mode, t.ids) for t in found.targets] == [
        ("question", (2, EOS)), ("question", (3, 2, EOS)), ("answer", (4, EOS)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"), [("", "an empty text has no tokens"), ("red violet", "a character that the tokenizer")]
)
def test_texts_that_are_none(text: str, said: str):
    with pytest.raises(StepwellError, match=said):
        problem_of(with_words(), "x", text)


def test_a_text_needs_a_tokenizer():
    with pytest.raises(StepwellError, match="no tokenizer, so the text 'red' has no tokens"):
        problem_of(tiny(), "x", "red")


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ((), "it has no targets"),
        ((Target(ids=(4, EOS), mode="think"),), "mode `think` has no mode vector; modes: ask, say"),
        ((Target(ids=(EOS,), mode="ask"),), "mode `ask` is empty"),
        ((Target(ids=(), mode="ask"),), "mode `ask` is empty"),
        ((Target(ids=(61, EOS), mode="ask"),), "has the unknown token 61; the model knows 61"),
        ((Target(ids=(4, EOS, 5, EOS), mode="ask"),), "has its end token 1 before its end"),
        ((Target(ids=(4, EOS), mode="ask", weight=0.0),), "has the weight 0.0"),
        ((Target(ids=(*[4] * 36, EOS), mode="ask"),), "needs 41 positions with its 4 slots, and the model knows 40"),
    ],
)
def test_problems_that_are_impossible(targets: tuple[Target, ...], fault: str):
    backbone = tiny()
    assert fault in str(fault_of(backbone, Problem(id="x", targets=targets), mode_vectors(backbone, MODES), 4))


def test_the_longest_target_that_fits_is_possible():
    backbone = tiny()
    problem = Problem(id="x", targets=(Target(ids=(*[4] * 35, EOS), mode="ask"),))
    modes = mode_vectors(backbone, MODES)
    assert fault_of(backbone, problem, modes, 4) is None
    assert lay_out(backbone, problem.targets, modes, 4).hidden(backbone, torch.zeros(1, 4, 32)).shape == (36, 32)
