"""Tiers whose items are asked in their context: ARC's demonstrations stand before the vectors."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import records
from tiny_imprint import DOUBLE, tiny_imprint
from torch.nn import functional as F

from stepwell.fitting.result import Fitted
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.imprint import params
from stepwell.studies.imprint.models import ByteTokenizer, scratch
from stepwell.tasks.arc import load_arc

RECIPE = "{steps: 60, restarts: 1, lr: 0.1, schedule: constant, init: table, curve_every: 1}"
STAGES = ("data", "model", "baselines", "joint", "check", "controls", "measure", "smallest")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks with grids of 1 x 2 cells and different numbers of demonstrations; one with far too long ones."""
    draw = random.Random(0)

    def pair(rows: int = 1) -> dict[str, Any]:
        return {key: [[draw.randrange(10) for _ in range(2)] for _ in range(rows)] for key in ("input", "output")}

    tasks = {f"t{n}": {"train": [pair() for _ in range(n + 1)], "test": [pair()]} for n in range(3)}
    tasks["long"] = {"train": [pair(30), pair(30)], "test": [pair()]}
    path = tmp_path_factory.mktemp("arc") / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


@pytest.fixture(scope="module")
def folders(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, tuple[Plan, Path]]]:
    """The same plan with the demonstrations before the vectors, as shipped, and without them."""
    found = {}
    for shown in (True, False):
        stages = STAGES if shown else STAGES[:4]
        more = [] if shown else ["data.tiers.arc.in_context=false"]
        plan = tiny_imprint(
            "axes.tier=[arc]", f"data.tiers.arc.file={file}", "data.tiers.arc.n=4", "controls.questions=1",
            f"joint.recipe={RECIPE}", *more, stages=stages,
            model=DOUBLE.replace("layers: 2", "layers: 2, max_positions: 160"),
        )  # fmt: skip
        result = run(plan, tmp_path_factory.mktemp("run") / "run")
        assert set(result.jobs.values()) == {"done"}
        found[shown] = plan, result.folder
    yield found


def job(folder: Path, stage: str, kind: str) -> list[dict[str, Any]]:
    return records(folder, f"{stage}.arc.tiny", kind)


def shown_ids(file: Path) -> dict[str, tuple[int, ...]]:
    """What stands before the mode vector, byte by byte: the demonstrations and an empty line."""
    return {item.id: tuple(f"{item.context}\n\n".encode()) for item in load_arc(file) if item.id != "long-0"}


def test_the_demonstrations_are_the_problems_context(folders: dict[bool, tuple[Plan, Path]], file: Path):
    (_, shown), (_, bare) = folders[True], folders[False]
    found = Fitted.load(shown / "artifacts" / "joint.arc.tiny" / "fit")
    assert found.contexts == shown_ids(file) and len(set(map(len, found.contexts.values()))) == 3
    assert not Fitted.load(bare / "artifacts" / "joint.arc.tiny" / "fit").contexts
    long = [row for row in job(shown, "joint", "target") if row["id"] == "long-0"]
    assert {row["end"] for row in long} == {"impossible"} and "its context of" in long[0]["detail"]
    assert {row["end"] for row in job(bare, "joint", "target")} <= {"exact", "steps"}


def test_baselines_stand_after_the_same_context(folders: dict[bool, tuple[Plan, Path]], file: Path):
    """Against one row at a time, without a cache: `nothing` and `full_context`, with the demonstrations and without."""
    shape = params.Scratch(architecture="gpt2", width=32, layers=2, max_positions=160)
    backbone = scratch(shape, "fp64", "cpu")
    contexts, modes = shown_ids(file), {"question": 255, "answer": 254}
    items = {item.id: item for item in load_arc(file)}
    for shown, (_, folder) in folders.items():
        for row in job(folder, "baselines", "baseline"):
            if row["id"] == "long-0" and shown:
                assert row["nothing"] is None and "its context of" in row["why"]
                continue
            item, mode = items[row["id"]], row["mode"]
            start = [*(contexts.get(item.id, ()) if shown else ()), modes[mode]]
            target = [*item.targets()[mode].encode(), ByteTokenizer.eos_token_id]
            begins = {"nothing": start}
            if mode == "answer":
                begins["full_context"] = [*start, *item.question.encode()]
            for name, ids in begins.items():
                with torch.no_grad():
                    logits = backbone.model(input_ids=torch.tensor([[*ids, *target[:-1]]])).logits[0, len(ids) - 1 :]
                wanted = float(F.cross_entropy(logits, torch.tensor(target)))
                assert row[name] == pytest.approx(wanted, rel=1e-9), (item.id, mode, name)


def test_what_is_read_off_the_vectors_stands_after_the_context_too(folders: dict[bool, tuple[Plan, Path]]):
    """Decoding, controls, noise and the search for slots agree with the fit."""
    folder = folders[True][1]
    fitted = {(row["id"], row["mode"]): row for row in job(folder, "joint", "target")}
    assert {row["exact"] for row in fitted.values()} == {True, False}
    for row in job(folder, "check", "spot"):
        assert row["exact_decode"] == fitted[row["id"], row["mode"]]["exact"]
    own = [row for row in job(folder, "controls", "control") if row["control"] == "own" and row["nats"] is not None]
    assert len(own) == 6
    for row in own:
        assert row["nats"] == pytest.approx(fitted[row["id"], row["mode"]]["nats"], rel=1e-6)
        assert row["exact"] == fitted[row["id"], row["mode"]]["exact"]
    lossless = [row for row in job(folder, "measure", "quantised") if row["change"] is not None]
    assert {row["id"] for row in lossless} == set(list(dict.fromkeys(row["id"] for row in own))[:2])
    for row in lossless:
        pair = [fitted[row["id"], mode] for mode in ("question", "answer")]
        nats = sum(one["nats"] * one["tokens"] for one in pair) / sum(one["tokens"] for one in pair)
        assert row["nats"] - row["change"] == pytest.approx(nats, rel=1e-6)
    assert job(folder, "smallest", "smallest")


def test_other_tiers_leave_the_context_out_unless_they_are_told():
    assert params.Arc().in_context
    for tier in (params.Squad(), params.Facts(), params.Arithmetic(), params.Sudoku(), params.OpenQA(task="nq")):
        assert not tier.in_context
    assert params.Squad(in_context=True).in_context
