"""The stage `qa.data`: items with their contexts in three splits, and what would make a result of them worthless."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.stage import StageContext
from stepwell.studies.qa.params import Generated, QADataParams
from stepwell.tasks.base import QA
from stepwell.tasks.qa_scores import squad_form
from stepwell.tasks.reading import make_reading
from stepwell.tasks.squad import load_squad

SPLITS = ("train", "held", "test")


def make(params: QADataParams, ctx: StageContext) -> None:
    """Write the splits as JSON lines, and the checks of them."""
    splits = split(load(params), params)
    source = "generated" if isinstance(params.source, Generated) else str(params.source.file or params.source.hub)
    for name, items in splits.items():
        text = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
        (ctx.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        ctx.write(
            "dataset", set=name, n=len(items), sha256=sha256(text.encode()).hexdigest(), source=source, family=None,
            contexts=len({item.context for item in items}), unanswerable=sum(not item.answers for item in items),
        )  # fmt: skip
    for name, passed, detail in checks(splits):
        ctx.write("check", name=name, passed=passed, detail=detail)


def load(params: QADataParams) -> list[QA]:
    """All items of the source that have a context. Raises StepwellError as the readers do."""
    source = params.source
    if isinstance(source, Generated):
        # A context has several questions: half as many again leaves room for splits that share none.
        n = (3 * (params.n_train + params.n_held + params.n_test)) // 2
        items = make_reading(n, params.draw, sentences=source.sentences, unanswerable=0.2 * params.unanswerable)
    else:
        items = load_squad(source.file or source.hub, split=source.split, unanswerable=params.unanswerable)
    return [item for item in items if item.context]


def split(items: Sequence[QA], params: QADataParams) -> dict[str, list[QA]]:
    """Train, held and test, drawn by context: no paragraph is in two of them, nor one that differs in form only.

    Contexts come in the order of their hashes, so a larger split contains a smaller one of the same draw, as far as the
    splits before it are the same.

    Raises:
        StepwellError: there are too few items.
    """
    by_context: dict[str, list[QA]] = defaultdict(list)
    for item in items:
        by_context[squad_form(item.context or "")].append(item)
    order = sorted(by_context, key=lambda form: sha256(f"{params.draw}\0{form}".encode()).digest())
    wanted = {"test": params.n_test, "held": params.n_held, "train": params.n_train}
    found: dict[str, list[QA]] = {}
    left = iter(order)
    for name, n in wanted.items():
        mine: list[QA] = []
        while len(mine) < n:
            context = next(left, None)
            if context is None:
                raise StepwellError(
                    f"the {len(items)} items over {len(order)} contexts do not fill the splits {wanted}, which share "
                    "no context",
                    "ask for fewer, or name a larger source",
                )
            mine += by_context[context]
        found[name] = mine[:n]
    return {name: found[name] for name in SPLITS}


def checks(splits: dict[str, list[QA]]) -> list[tuple[str, bool, str]]:
    """(name, passed, detail) of each fault that the splits could have."""
    contexts = {name: {squad_form(item.context or "") for item in items} for name, items in splits.items()}
    shared = {
        f"{a}/{b}": len(contexts[a] & contexts[b]) for a, b in (("train", "held"), ("train", "test"), ("held", "test"))
    }
    every = [item for items in splits.values() for item in items]
    answered = [item for item in every if item.answers]
    lost = [
        item.id
        for item in answered
        if not any(squad_form(gold) in squad_form(item.context or "") for gold in item.answers)
    ]
    ids = {item.id for item in every}
    return [
        ("no-shared-context", not any(shared.values()), f"contexts in two splits: {shared}"),
        ("answers-in-context", not lost, f"{len(lost)} of {len(answered)} answers are not in their context"),
        ("one-id-each", len(ids) == len(every), f"{len(every)} items, {len(ids)} ids"),
    ]


def read_split(folder: Path, name: str, items: int = 0) -> list[QA]:
    """A split that `make` wrote, or its first `items`."""
    found = []
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found.append(QA(id=row["id"], question=row["question"], answers=tuple(row["answers"]),
                            context=row["context"]))  # fmt: skip
    return found[:items] if items else found
