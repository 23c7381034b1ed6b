"""The stage `imprint.data`: the pairs of one tier, as records; and how the other stages read them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from typing import Any

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.stage import StageContext
from stepwell.studies.imprint.params import Arc, Arithmetic, DataParams, Facts, OpenQA, Squad, Sudoku, Text, Tier
from stepwell.tasks import arc, arithmetic, openqa, squad, sudoku, text
from stepwell.tasks.base import QA, Scorer, sample

SCORERS: Mapping[str, Scorer] = {
    "facts": squad.score,
    "squad": squad.score,
    "triviaqa": openqa.score_triviaqa,
    "nq": openqa.score_nq,
    "arithmetic": arithmetic.score,
    "sudoku": sudoku.score,
    "arc": arc.score,
    "text": text.score,
}


HUBS = {"triviaqa": "mandarjoshi/trivia_qa:rc.nocontext", "nq": "google-research-datasets/nq_open"}


def load_pairs(tier: Tier, seed: int) -> tuple[list[QA], int]:
    """The pairs of a tier, drawn at random where there are more, and how many cannot be pairs: they have no answer.

    Raises:
        StepwellError: a file or hub set that cannot be used, or fewer pairs than asked for.
    """
    items = every_pair(tier, seed)
    usable = [item for item in items if item.targets() and item.answer]
    if not usable:
        raise StepwellError(f"none of the {len(items)} items has an answer", "name another file or data set")
    return sample(usable, tier.n, seed), len(items) - len(usable)


def every_pair(tier: Tier, seed: int) -> list[QA]:
    """All items of a tier, before any is left out or drawn. Raises as `load_pairs`."""
    return _READERS[type(tier)](tier, seed)


def _facts(tier: Facts, seed: int) -> list[QA]:
    with as_file(files("stepwell.tasks") / "facts.jsonl") as path:
        return openqa.load_openqa(path)


def _squad(tier: Squad, seed: int) -> list[QA]:
    # With those that have no answer: they are no pairs, and are counted as left out.
    return squad.load_squad(tier.file or tier.hub, split=tier.split, unanswerable=True)


def _openqa(tier: OpenQA, seed: int) -> list[QA]:
    return openqa.load_openqa(tier.file or tier.hub or HUBS[tier.task], split=tier.split)


def _arithmetic(tier: Arithmetic, seed: int) -> list[QA]:
    return arithmetic.make_arithmetic(tier.n, operations=tier.operations, digits=tier.digits, seed=seed)


def _sudoku(tier: Sudoku, seed: int) -> list[QA]:
    return sudoku.make_sudoku(tier.n, side=tier.side, givens=tier.givens, seed=seed)


def _arc(tier: Arc, seed: int) -> list[QA]:
    return arc.load_arc(tier.file or tier.source, split=tier.split, demonstrations=tier.demonstrations)


def _text(tier: Text, seed: int) -> list[QA]:
    return text.load_text(tier.file)


_READERS: dict[type[Tier], Callable[[Any, int], list[QA]]] = {
    Facts: _facts, Squad: _squad, OpenQA: _openqa, Arithmetic: _arithmetic, Sudoku: _sudoku, Arc: _arc, Text: _text,
}  # fmt: skip


def make(params: DataParams, ctx: StageContext) -> None:
    """Write the pairs of the job's tier, one record each."""
    name = str(ctx.job.axes["tier"])
    if name not in params.tiers:
        raise StepwellError(
            f"there is no tier `{name}`; tiers: {', '.join(params.tiers)}", "name some of them in `axes.tier`"
        )
    tier = params.tiers[name]
    items, left_out = load_pairs(tier, params.draw)
    held = [[item.id, item.question, list(item.answers), item.context] for item in items]
    ctx.write(
        "dataset", set=name, n=len(items), sha256=fingerprint(held), source=_source(tier), family=None,
        task=_task(tier), left_out=left_out,
    )  # fmt: skip
    for item in items:
        ctx.write(
            "example", id=item.id, question=item.question, answer=item.answer, answers=list(item.answers),
            context=item.context,
        )  # fmt: skip


def _source(tier: Tier) -> str:
    """Where the pairs come from: a file, a hub set, a set of a package, or a generator."""
    if isinstance(tier, Facts):
        return "stepwell"
    named = [getattr(tier, field, None) for field in ("file", "hub", "source")]
    return str(next((each for each in (*named, HUBS.get(_task(tier))) if each), "generated"))


def _task(tier: Tier) -> str:
    return str(getattr(tier, "task", ""))


def examples(ctx: StageContext, items: int = 0) -> list[QA]:
    """The pairs that the data stage wrote, or the first `items` of them."""
    (data,) = ctx.inputs["data"]
    found = [
        QA(id=row["id"], question=row["question"], answers=tuple(row["answers"]), context=row["context"])
        for row in data.records("example")
    ]
    return found[:items] if items else found


def context_of(ctx: StageContext) -> Callable[[QA], str]:
    """Pair -> what stands before the mode vector in its rows; "" where nothing does, as in most tiers."""
    (data,) = ctx.inputs["data"]
    tier = DataParams.model_validate(dict(data.job.params)).tiers[str(data.job.axes["tier"])]

    def context(item: QA) -> str:
        # What follows begins after an empty line, as each of ARC's demonstrations does.
        return f"{item.context}\n\n" if tier.in_context and item.context else ""

    return context


GRIDS = frozenset({"arithmetic", "sudoku", "arc"})
"""Tasks whose texts are no words: every sign and every line break counts."""


def in_words(ctx: StageContext) -> bool:
    """Whether the texts of the job's tier are words, to be compared without case and punctuation."""
    (data,) = ctx.inputs["data"]
    return next(data.records("dataset"))["task"] not in GRIDS


def scorer(ctx: StageContext) -> Scorer:
    """The scorer of the job's tier."""
    (data,) = ctx.inputs["data"]
    return SCORERS[next(data.records("dataset"))["task"]]
