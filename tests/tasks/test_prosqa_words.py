"""The vocabulary is the official one, and the word tokenizer restores every text it reads."""

from __future__ import annotations

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa import CONCEPTS, FAMILIES, PERSONS, WordTokenizer, generate_items, load_items, names_of

WORDS = WordTokenizer()


def test_names_are_recovered_from_the_official_data(shared_data):
    items = load_items(shared_data("prosqa/valid.json"))
    assert names_of(item.idx_to_symbol for item in items) == (PERSONS, CONCEPTS)
    assert (len(PERSONS), len(CONCEPTS)) == (17, 38)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_sequences_come_back_as_they_were(family):
    for item in generate_items(family, 20, seed=2):
        text = f"{item.question}\n<|start-latent|><|latent|><|latent|><|end-latent|>"
        text += "\n".join(item.steps) + f"\n### {item.answer}<eos>"
        ids = WORDS.encode(text)
        assert WORDS.decode(ids) == text
        assert ids[-1] == WORDS.eos_token_id and ids.count(WORDS.get_vocab()["<|latent|>"]) == 2


def test_one_token_a_word():
    ids = WORDS.encode("Tom is a dumpus.")
    assert [WORDS.tokens[number] for number in ids] == ["Tom", "is", "a", "dumpus", "."]
    assert len(WORDS) == len(WORDS.get_vocab()) == 5 + 9 + 17 + 38


def test_special_tokens_can_be_left_out():
    ids = [WORDS.pad_token_id, *WORDS.encode("Is Tom a dumpus or lempus?"), WORDS.eos_token_id]
    assert WORDS.decode(ids, skip_special_tokens=True) == "Is Tom a dumpus or lempus?"


def test_official_text_is_within_the_vocabulary(shared_data):
    for item in load_items(shared_data("prosqa/valid.json")):
        assert WORDS.decode(WORDS.encode(item.question)) == item.question


@pytest.mark.parametrize("word", ["Gandalf", "dragon", "!", "<", "<eos"])
def test_unknown_words_are_named(word):
    with pytest.raises(StepwellError, match="is not in the vocabulary of 69 words"):
        WORDS.encode(f"Tom is a {word}.")


def test_names_of_other_data_can_be_given():
    other = WordTokenizer(persons=["Ann"], concepts=["cat", "dog"])
    assert other.decode(other.encode("Is Ann a cat or dog?")) == "Is Ann a cat or dog?"
