"""Readers lay out what the arms say and read back what was written; scores are those of one item at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_thoughts import BACKBONES, Slow, backbone_of
from stepwell.audit.training import learns_its_labels
from stepwell.errors import StepwellError
from stepwell.evaluate import Scored, accuracy, asked, score
from stepwell.latents.thoughts import ARMS, IGNORE, WITH_CURRICULUM, WITH_LATENTS, Arm, Batch, Thoughts
from stepwell.objectives import cross_entropy, supervised
from stepwell.tasks.prosqa import Item, WordTokenizer, generate_graphs, generate_items, pack
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import ANSWER, EOS, SymbolFormat

WORDS = WordTokenizer()
START, LATENT, END = (WORDS.get_vocab()[token] for token in ("<|start-latent|>", "<|latent|>", "<|end-latent|>"))
LAYOUT = SymbolFormat(prompt="pairs", persons=17, concepts=38)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def items_of(family: str, n: int = 5) -> tuple[Item, ...]:
    return tuple(generate_items(family, n, 0))


@cache
def letters() -> Any:
    """A tokenizer of transformers, one token a byte, that puts BOS before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    built: Any = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")
    found.add_tokens(["<|start-latent|>", "<|latent|>", "<|end-latent|>"], special_tokens=True)
    return found


def text_reader(items: Sequence[Item], tokenizer: Any = WORDS, *, pad_to_max: bool = True, per_step: int = 1) -> Reader:
    vocabulary = tokenizer.get_vocab()
    markers = [vocabulary[token] for token in ("<|start-latent|>", "<|latent|>", "<|end-latent|>")]
    return TextReader(items, tokenizer, markers, thoughts_per_step=per_step, pad_to_max=pad_to_max)


@pytest.fixture(params=["words", "letters", "pairs", "facts"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def reader_of(kind: str, items: Sequence[Item], **options: Any) -> Reader:
    if kind in ("words", "letters"):
        return text_reader(items, WORDS if kind == "words" else letters(), **options)
    return SymbolReader(pack(items), replace(LAYOUT, prompt=kind))  # pyright: ignore[reportArgumentType]


def whole(reader: Reader, arm: Arm, stage: int = 0) -> Batch:
    return reader.train_batch(torch.arange(len(reader)), arm, lambda _: stage, seeded())


def gold(batch: Batch, row: int) -> list[int]:
    """The labels without EOS: what a perfect model decodes."""
    return batch.labels[row][batch.labels[row] != IGNORE].tolist()[:-1]


def paths_of(item: Item) -> Iterator[list[int]]:
    """Every path from the root to the target, by depth-first search."""
    waiting = [[item.root]]
    while waiting:
        path = waiting.pop()
        if path[-1] == item.target:
            yield path
        waiting += [[*path, child] for parent, child in item.edges if parent == path[-1]]


def written(kind: str, reader: Reader, batch: Batch, row: int, item: Item, nodes: Sequence[int]) -> list[int]:
    """A chain over nodes, the marker and the right answer, as tokens."""
    if kind in ("pairs", "facts"):
        assert batch.names is not None
        return [*batch.names[row, list(nodes[1:])].tolist(), *reader.options(batch, row)[0]]
    names = item.idx_to_symbol
    lines = [
        f"{names[a]} is a {names[b]}.\n" if names[a][0].isupper() else f"Every {names[a]} is a {names[b]}.\n"
        for a, b in pairwise(nodes)
    ]
    tokenizer: Any = WORDS if kind == "words" else letters()
    text = "".join(lines) + f"### {item.answer}"
    return tokenizer.encode(text) if kind == "words" else tokenizer.encode(text, add_special_tokens=False)


# Layout of text


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids))


@pytest.mark.parametrize("per_step", [1, 2])
@pytest.mark.parametrize("arm", ARMS)
def test_text_sequences_token_by_token(arm: Arm, per_step: int):
    items = items_of("id", 8)
    reader = text_reader(items, per_step=per_step)
    for stage in (0, 1, 4, 6):
        batch = whole(reader, arm, stage)
        removed = stage if arm in WITH_CURRICULUM else 0 if arm == "cot" else 99
        for row, item in enumerate(items):
            question = WORDS.encode(item.question + "\n")
            tail = [token for step in item.steps[removed:] for token in WORDS.encode(step + "\n")]
            tail += [*WORDS.encode(f"### {item.answer}"), WORDS.eos_token_id]
            middle = [START, *[LATENT] * (stage * per_step), END] if arm in WITH_LATENTS else []
            assert batch.ids[row][batch.mask[row]].tolist() == [*question, *middle, *tail]
            labelled = batch.labels[row] != IGNORE
            assert batch.labels[row][labelled].tolist() == tail
            assert int(labelled.nonzero()[0]) == batch.first + max(len(middle) - 1, 0)
            assert torch.equal(batch.latent[row], (batch.ids[row] == LATENT) & batch.mask[row])
            if middle:
                assert int(batch.ids[row, batch.first - 1]) == START


def test_text_latents_of_items_with_fewer_steps():
    items = items_of("id", 8)
    hops = [item.hops for item in items]
    assert min(hops) < 5
    short = whole(text_reader(items, pad_to_max=False, per_step=2), "continuous", 5)
    assert short.latent.sum(1).tolist() == [2 * min(5, h) for h in hops]
    assert whole(text_reader(items, per_step=2), "continuous", 5).latent.sum(1).tolist() == [10] * 8


def test_each_text_may_have_a_stage_of_its_own():
    drawn = iter([0, 3, 1, 2, 0])
    reader = text_reader(items_of("id"))
    batch = reader.train_batch(torch.arange(5), "shared", lambda _: next(drawn), seeded())
    assert batch.latent.sum(1).tolist() == [0, 3, 1, 2, 0]


def test_bos_stands_once_before_the_question():
    """The tokenizer adds BOS to every text it is given, but steps and answers are no texts of their own."""
    tokenizer, items = letters(), items_of("mini")
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    batch = whole(text_reader(items, tokenizer), "continuous", 1)
    for row, item in enumerate(items):
        ids = batch.ids[row][batch.mask[row]].tolist()
        assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]
        wanted = f"<s>{item.question}\n<|start-latent|><|latent|><|end-latent|>"
        wanted += "".join(step + "\n" for step in item.steps[1:]) + f"### {item.answer}</s>"
        assert text_of(tokenizer, ids) == wanted


def test_training_and_asking_have_the_same_prompt(kind: str):
    reader = reader_of(kind, items_of("mini"))
    rows = torch.arange(5)
    for arm in ARMS:
        for stage in (0, 2):
            prompt = reader.ask(rows, arm, stage, seeded())
            train = whole(reader, arm, stage)
            assert prompt.first == train.first
            for name in ("ids", "mask", "latent"):
                assert torch.equal(getattr(prompt, name), getattr(train, name)[:, : prompt.ids.shape[1]])
            assert bool((prompt.labels == IGNORE).all())
            assert bool((train.labels[:, prompt.ids.shape[1]] != IGNORE).all())


@pytest.mark.parametrize("pad_to_max", [True, False])
def test_latents_at_evaluation_are_the_stages(kind: str, pad_to_max: bool):
    """Never the item's number of steps, also where training does so: it would tell the hops."""
    items = items_of("id", 8)
    options: dict[str, Any] = {"pad_to_max": pad_to_max} if kind in ("words", "letters") else {}
    prompt = reader_of(kind, items, **options).ask(torch.arange(8), "continuous", 6, seeded())
    assert prompt.latent.sum(1).tolist() == [6] * 8
    if kind == "words" and not pad_to_max:
        with pytest.raises(ValueError, match="decode with the same number of latents for all"):
            whole(reader_of(kind, items, **options), "continuous", 6).prompt()


# Reading back


def test_the_gold_continuation_is_right(kind: str):
    items = items_of("id", 8)
    reader = reader_of(kind, items)
    batch = whole(reader, "cot")
    for row in range(8):
        answer = reader.answer(batch, row, gold(batch, row))
        assert answer.correct and answer.chain_valid is True and answer.text
        right, wrong = reader.options(batch, row)
        assert [*answer.steps, *right] == gold(batch, row), "the steps end where the marker begins"
        read = reader.answer(batch, row, [*answer.steps, *wrong])
        assert not read.correct and read.chain_valid is True and read.text not in ("", answer.text)
        assert reader.answer(batch, row, right).chain_valid is None
        assert reader.answer(batch, row, right).correct
    assert reader.longest_tail == max(len(gold(batch, row)) + 1 for row in range(8))


def test_any_valid_path_counts(kind: str):
    items = items_of("dag", 6)
    reader = reader_of(kind, items)
    batch, others = whole(reader, "cot"), 0
    for row, item in enumerate(items):
        for path in paths_of(item):
            ids = written(kind, reader, batch, row, item, path)
            others += ids != gold(batch, row)
            answer = reader.answer(batch, row, ids)
            assert answer.chain_valid is True and answer.correct
    assert others >= 6, "no item has a second path: the test would be empty"


def test_an_invalid_chain_is_refused(kind: str):
    items = items_of("no-shortcut", 6)
    reader = reader_of(kind, items)
    batch = whole(reader, "cot")
    for row, item in enumerate(items):
        path = next(paths_of(item))
        elsewhere = [node for node in range(len(item.idx_to_symbol)) if (path[0], node) not in item.edges]
        faults = {
            "a step left out": [path[0], *path[2:]],
            "the last step left out": path[:-1],
            "in another order": [path[0], path[2], path[1], *path[3:]],
            "to the wrong option": [*path[:-1], item.neg_target],
            "no fact": [path[0], elsewhere[-1], *path[2:]],
            "a step twice": [*path[:2], *path[1:]],
            "on beyond the target": [*path, path[1]],
        }
        for fault, nodes in faults.items():
            answer = reader.answer(batch, row, written(kind, reader, batch, row, item, nodes))
            assert answer.chain_valid is False, fault
            assert answer.correct, "the answer is judged by itself"


def test_text_that_ends_early_has_no_answer(kind: str):
    reader = reader_of(kind, items_of("mini"))
    batch = whole(reader, "cot")
    for row in range(5):
        ids = gold(batch, row)
        steps = reader.answer(batch, row, ids).steps
        for cut in (list(steps), [], list(steps) + list(reader.options(batch, row)[0])[:1]):
            answer = reader.answer(batch, row, cut)
            assert not answer.correct and answer.text == ""


def test_identity_and_options():
    items = items_of("mini")
    reader = text_reader(items)
    batch = whole(reader, "cot")
    assert reader.identity(2) == (items[2].id, items[2].hops, items[2].answer)
    assert [text_of(WORDS, ids) for ids in reader.options(batch, 2)] == [f"### {o}" for o in items[2].options()]
    symbols = SymbolReader(pack(items), LAYOUT, [item.id for item in items])
    assert symbols.identity(2) == (items[2].id, items[2].hops, f"node {items[2].target}")
    assert SymbolReader(pack(items), LAYOUT).identity(2)[0] == "2"
    batch = whole(symbols, "cot")
    assert batch.names is not None
    for row, item in enumerate(items):
        right, wrong = batch.names[row, item.target], batch.names[row, item.neg_target]
        assert symbols.options(batch, row) == ((ANSWER, int(right)), (ANSWER, int(wrong)))
    assert symbols.eos == EOS and len(symbols) == len(reader) == 5


@pytest.mark.parametrize(("names", "message"), [
    ({"persons": 2}, r"an item has \d persons, but the model has names for 2: two nodes would share one"),
    ({"concepts": 9}, r"an item has \d+ concepts, but the model has names for 9: two nodes would share one"),
])  # fmt: skip
def test_more_nodes_than_names_are_refused(names: dict[str, int], message: str):
    graphs = generate_graphs("no-shortcut", 20, 0)
    SymbolReader(graphs, LAYOUT)
    with pytest.raises(StepwellError, match=message) as error:
        SymbolReader(graphs, replace(LAYOUT, **names))
    assert f"raise `{next(iter(names))}` of the model to " in str(error.value)
    SymbolReader(generate_graphs("mini", 20, 0), replace(LAYOUT, persons=2, concepts=8))


# Scores


def agrees(found: Scored, slow: Slow, reader: Reader, batch: Batch, row: int) -> None:
    ids = slow.decode(reader.eos, 2 * reader.longest_tail)
    answer = reader.answer(batch, row, ids)
    assert found.answer == answer
    right, wrong = reader.options(batch, row)
    margin = slow.nats(answer.steps, right) - slow.nats(answer.steps, wrong)
    assert math.isclose(found.margin, margin, rel_tol=1e-5, abs_tol=1e-4)
    assert found.forced_correct == (margin > 0)


def model_of(name: str, arm: Arm) -> Thoughts:
    torch.manual_seed(7)
    vector = torch.randn(16, dtype=torch.float64) if arm in ("shared", "frozen") else None
    return Thoughts(backbone_of(name), arm, vector=vector).eval()


@cache
def reader_for(name: str) -> Reader:
    if name.startswith("facts"):
        return SymbolReader(generate_graphs("mini", 3, 0), replace(LAYOUT, prompt="facts", markers=False))
    return text_reader(items_of("mini", 3)) if name != "pairs" else SymbolReader(generate_graphs("mini", 3, 0), LAYOUT)


@pytest.mark.parametrize(("arm", "name"), [
    *(("continuous", name) for name in BACKBONES),
    *((arm, name) for arm in ("cot", "shared") for name in ("pairs", "facts-with-positions", "gpt2")),
])  # fmt: skip
def test_scores_are_those_of_one_item_at_a_time(name: str, arm: Arm):
    """Free decoding and the margin of both options, batched over one cache, against full sequences in float64."""
    model, reader = model_of(name, arm), reader_for(name)
    stage = 2 if arm in WITH_LATENTS else 0
    found = list(score(model, reader, stage=stage, seed=3, batch_size=2))
    assert [one.row for one in found] == [0, 1, 2]
    with torch.no_grad():
        for rows, batch in asked(model, reader, stage=stage, seed=3, batch_size=2):
            for i, row in enumerate(rows.tolist()):
                agrees(found[row], Slow(model, batch, i), reader, batch, i)


def test_a_trained_model_is_scored_one_item_at_a_time():
    """The same where the model does write steps, marker and answer, each row its own number of them."""
    items = generate_items("mini", 3, 0)
    reader, model = text_reader(items), model_of("gpt2", "cot")
    batch = whole(reader, "cot")

    class Trained:
        module = model

        def objective(self, batch: Batch) -> tuple[Tensor, int]:
            mask, targets = supervised(batch.labels, batch.first)
            return cross_entropy(model.backbone.logits(model(batch)[mask]), targets)

    passed, detail = learns_its_labels(Trained(), batch, reader.eos, steps=150, lr=2e-2)
    assert passed, detail
    found = list(score(model, reader, stage=0, seed=0, batch_size=3))
    assert accuracy(found) == (3, 3)
    assert len({len(one.answer.steps) for one in found}) > 1
    for row, one in enumerate(found):
        assert one.answer.chain_valid is True and one.answer.text == items[row].answer
        assert one.forced_correct and one.margin > 1
        with torch.no_grad():
            agrees(one, Slow(model, batch.prompt(), row), reader, batch, row)


@pytest.mark.parametrize("name", ["gpt2", "llama", "pairs"])
def test_batched_is_single(name: str):
    """The text of an item is the same in every batch, so its score is."""
    model, reader = model_of(name, "continuous"), text_reader(items_of("mini", 5))
    single = list(score(model, reader, stage=2, seed=0, batch_size=1))
    for size in (2, 5, 64):
        for a, b in zip(score(model, reader, stage=2, seed=0, batch_size=size), single, strict=True):
            assert a.answer == b.answer and math.isclose(a.margin, b.margin, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("name", ["pairs", "gpt2"])
def test_positions_that_run_out_end_a_row_and_nothing_else(name: str):
    """A model that knows few positions writes the beginning of what it would have written; both options still fit."""
    model, reader = model_of(name, "cot"), text_reader(items_of("mini", 5))
    roomy = list(score(model, reader, stage=0, seed=0, batch_size=5))
    prompts = reader.ask(torch.arange(5), "cot", 0, seeded()).mask.sum(1).tolist()
    options = [max(map(len, reader.options(whole(reader, "cot"), row))) for row in range(5)]
    known = max(prompts) + max(options) + 2
    limit_positions(model, known)
    assert max(len(one.answer.steps) for one in roomy) > 2
    for one, before, prompt, option in zip(
        score(model, reader, stage=0, seed=0, batch_size=5), roomy, prompts, options, strict=True
    ):
        assert one.answer.steps == before.answer.steps[: known - prompt - option]
        assert math.isfinite(one.margin)
    assert [s.row for s in score(model, reader, stage=0, seed=0, batch_size=2)] == [0, 1, 2, 3, 4]


def limit_positions(model: Thoughts, known: int) -> None:
    table = model.backbone.position if hasattr(model.backbone, "position") else model.backbone.base.wpe
    table.weight = torch.nn.Parameter(table.weight[:known].clone())
    table.num_embeddings = model.backbone.max_positions = known


def test_the_first_items_only_and_no_forced_choice():
    model, reader = model_of("pairs", "cot"), text_reader(items_of("mini", 5))
    found = list(score(model, reader, stage=0, seed=0, batch_size=2, items=3, forced=False))
    assert [one.row for one in found] == [0, 1, 2]
    assert all(one.margin is None and one.forced_correct is None for one in found)
    assert len(list(score(model, reader, stage=0, seed=0, batch_size=2, items=99))) == 5


def test_a_tie_is_not_right():
    answer = reader_for("gpt2").answer(whole(reader_for("gpt2"), "cot"), 0, [])
    assert not Scored(row=0, answer=answer, margin=0.0).forced_correct


@pytest.mark.parametrize("arm", ["cot", "direct", "continuous", "removal"])
@pytest.mark.parametrize("pad_to_max", [True, False])
def test_the_longest_training_sequence_is_that_of_the_batches(arm: Any, pad_to_max: bool):
    items = items_of("id", 6)
    reader = TextReader(items, WordTokenizer(), (2, 3, 4), thoughts_per_step=9, pad_to_max=pad_to_max)
    stages = 0 if arm in ("cot", "direct") else 4
    found = [
        reader.train_batch(torch.tensor([row]), arm, lambda _, s=stage: s, torch.Generator()).ids.shape[1]
        for row in range(len(items))
        for stage in range(stages + 1)
    ]
    row, tokens = reader.longest_row(arm, stages)
    assert tokens == max(found) == max(found[row * (stages + 1) : (row + 1) * (stages + 1)])
