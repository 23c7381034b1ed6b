"""Overlap: against a slow reference on random texts, and on the edges."""

from __future__ import annotations

import random

import pytest

from stepwell.errors import StepwellError
from stepwell.sft.overlap import Overlap


def shares(a: list[str], b: list[str], n: int) -> bool:
    """Whether two texts share n words in a row, pair by pair."""
    return any(a[i : i + n] == b[j : j + n] for i in range(len(a) - n + 1) for j in range(len(b) - n + 1))


def test_against_a_slow_reference():
    draw = random.Random(3)
    texts = {f"t{i}": draw.choices("abcd", k=draw.randint(1, 9)) for i in range(12)}
    index = Overlap.of({name: " ".join(text) for name, text in texts.items()}, n=4)
    hits = 0
    for _ in range(200):
        asked = draw.choices("abcd", k=draw.randint(1, 9))
        wanted = {name for name, text in texts.items() if asked == text or shares(asked, text, 4)}
        found = index.find(", ".join(asked).upper())
        assert (found in wanted) if wanted else found is None
        hits += bool(wanted)
    assert 20 < hits < 180


def test_a_short_text_is_found_as_a_whole_only():
    index = Overlap.of({"a": "What is it?"})
    assert index.find("what   IS it") == "a"
    assert index.find("what is it now") is None


def test_what_has_no_words_is_never_found():
    index = Overlap.of({"a": "...", "b": "word"})
    assert index.find("!!!") is None


def test_wording_that_all_items_share_says_nothing():
    lead = "Answer the question below and give the last number as the result of it all"
    index = Overlap.of({f"q{i}": f"{lead} number{i} other{i}" for i in range(11)})
    assert index.find(f"{lead} for something else") is None
    assert index.find(f"{lead} number3 other3") == "q3"
    few = Overlap.of({f"q{i}": f"{lead} number{i} other{i}" for i in range(10)})
    assert few.find(f"{lead} for something else") == "q0"


def test_runs_of_no_words_are_refused():
    with pytest.raises(StepwellError, match="runs of 0 words are asked for"):
        Overlap.of({}, n=0)
