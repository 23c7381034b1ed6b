"""The demo rungs of all studies, so small that one runs in seconds, with as many of their stages as can be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny import tiny
from tiny_imprint import tiny_imprint
from tiny_squeeze import letters_folder, tiny_squeeze
from tiny_tune import tiny_tune
from tiny_wire import tiny_wire, wire_model
from tune_answers import data_stage, maths_file, plan_of, recorded, stage

from stepwell.plan import Plan


def thoughts(here: Path) -> Plan:
    """On symbols: a small GPT-2 trained from scratch."""
    del here
    return tiny("engine=inline", "train.steps=40", "train.checkpoint_every=3")


def thoughts_on_text(here: Path) -> Plan:
    """With dropout, an optimizer that is reset, and epochs."""
    del here
    return tiny("engine=inline", "train.checkpoint_every=3", "data.n_test=8", text=True, arms=("continuous", "shared"))


def imprint(here: Path) -> Plan:
    """With the other wordings, which are fitted where question and answer are at odds."""
    ids = ("arithmetic-9+7", "arithmetic-4+9", "arithmetic-0+5", "arithmetic-5+3")
    lines = [{"id": id, "questions": [f"sum {id}", f"add {id}"], "answers": ["is it"]} for id in ids]
    file = here / "wordings.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tiny_imprint(
        f"paraphrase.source={{kind: file, path: {file}}}", "paraphrase.n=2", "joint.chunk=2",
        "gates.harmony.routes={go: paraphrases, no-go: paraphrases, inconclusive: paraphrases}",
    )  # fmt: skip


def squeeze(here: Path) -> Plan:
    longer = ("restore.arms.residual.recipe.steps=120", "refine.recipe.steps=8")
    return tiny_squeeze(letters_folder(here / "letters"), *longer)


def wire(here: Path) -> Plan:
    longer = ("stage-a.recipe.steps=10", "stage-b.recipe.steps=10")
    return tiny_wire(wire_model(here / "wire"), *longer, stages=None)


def tune(here: Path) -> Plan:
    return tiny_tune(wire_model(here / "tune"), "train.steps=10", "train-b.steps=8")


def tune_answers(here: Path) -> Plan:
    """What `tune` does with answers of others: a model of random weights has nothing right that it could lose."""
    wrote = {name: {f"m{i}": str(i + (i < wrong)) for i in range(60)} for name, wrong in (("one", 3), ("two", 20))}
    files = {name: recorded(here / f"{name}.jsonl", answers, name) for name, answers in wrote.items()}
    return plan_of(
        data_stage(here, {"maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", 60))}}),
        stage("one", "reference", ["data"], source=files["one"]),
        stage("two", "reference", ["data"], source=files["two"]),
        stage("versus", "versus", ["data", "one", "two"], ours="one", theirs="two"),
        stage("regress", "regress", ["one", "two"], before="one", after="two"),
    )  # fmt: skip


PLANS: dict[str, Callable[[Path], Plan]] = {
    "thoughts": thoughts,
    "thoughts-text": thoughts_on_text,
    "imprint": imprint,
    "squeeze": squeeze,
    "wire": wire,
    "tune": tune,
    "tune-answers": tune_answers,
}
