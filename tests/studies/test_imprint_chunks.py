"""A fit of `imprint` in chunks: the same records whoever fits them, in whatever order, and whatever goes wrong."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import planted_fits
import pytest
import torch
from tiny import contents, records
from tiny_imprint import FIT, context, of_kind, tiny_imprint

from stepwell.engine import JobCall
from stepwell.engine.chunks import Ended
from stepwell.engine.process_pool import ProcessPool
from stepwell.engine.worker import seed_of
from stepwell.fitting.result import Fitted, Record
from stepwell.fitting.saving import Saving
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.stage import Memory
from stepwell.store import RunFolder
from stepwell.studies.imprint import kept
from stepwell.studies.imprint.fits import VECTORS, WORK, Fitter, fit_pairs
from stepwell.studies.imprint.params import FitParams

JOB = "joint.arithmetic.tiny"
PAIRS = 5
Records = list[dict[str, Any]]


def plan_of(*overrides: str, stages: Sequence[str] = FIT) -> Plan:
    """Five pairs in chunks of one."""
    return tiny_imprint(f"data.tiers.arithmetic.n={PAIRS}", "joint.chunk=1", *overrides, stages=stages, gates=())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its fit."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    run(plan_of(stages=FIT[:-1]), folder)
    return folder


Pools = Callable[[Any, str], Any]


def fitted(prepared: Path, folder: Path, *overrides: str, pool: Pools | None = None) -> Memory:
    """What the fit records there, in this process or by a pool (context, folder) -> pool."""
    shutil.copytree(prepared, folder)
    plan = plan_of(*overrides)
    RunFolder(folder).write_plan(plan)
    ctx, memory = context(plan, folder, JOB, folder / "artifacts" / JOB)
    ctx = replace(ctx, seed=seed_of(plan.seed, ctx.job))  # pyright: ignore[reportArgumentType]
    if pool is not None:
        ctx.pool = lambda reference: pool(ctx, str(folder))
    fit_pairs(FitParams.model_validate(dict(ctx.job.params)), ctx)
    return memory


def without(memory: Memory, *items: int) -> Records:
    """Records of pairs and restarts but of some pairs, and those that all pairs share."""
    names = {of_kind(memory, "pair")[item]["id"] for item in items}
    return [record for record in memory.records if "id" in record and record["id"] not in names]


def processes(ctx: Any, folder: str) -> ProcessPool:
    call = JobCall(folder=folder, job=JOB, fingerprint="f", threads=1)
    return ProcessPool(call, planted_fits.WORK, workers=2, device="cpu")


class Shuffled:
    """Chunks of a fit in this process, in an order that is drawn, all of them begun before the first is told."""

    def __init__(self, work: Callable[[range], None], seed: int) -> None:
        self.work, self.drawn = work, random.Random(seed)
        self.chunks: list[range] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def idlest(self) -> int:
        return 0

    def submit(self, chunk: range) -> None:
        self.chunks.append(chunk)

    def wait(self, seconds: float) -> Sequence[Ended]:
        chunk = self.chunks.pop(self.drawn.randrange(len(self.chunks)))
        self.work(chunk)
        return [Ended(chunk, "done")]


GIVEN_UP = ("joint.abandon={below: 0.95, after: 2, confidence: 0.5}", "joint.slots=1",
            "joint.recipe={steps: 2, restarts: 2, lr: 1e-6}")  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_when_a_fit_is_given_up_does_not_depend_on_the_order(prepared: Path, tmp_path: Path, seed: int) -> None:
    def shuffled(ctx: Any, folder: str) -> Shuffled:
        return Shuffled(Fitter.of(FitParams.model_validate(dict(ctx.job.params)), ctx).fit, seed)

    first = fitted(prepared, tmp_path / "first", *GIVEN_UP)
    second = fitted(prepared, tmp_path / "second", *GIVEN_UP, pool=shuffled)
    assert first.records == second.records
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    (alert,) = of_kind(first, "alert")
    assert alert["step"] == 4 and alert["message"].startswith("0 of 2 pairs converged")
    assert [row["end"] for row in of_kind(first, "pair")] == ["steps", "steps", "stopped", "stopped", "stopped"]
    told = [event for event in first.events if event["event"] == "alert"]
    assert [event["message"] for event in told] == [alert["message"]], "the live table shows why"


def test_pairs_that_cannot_be_fitted_count_among_those_that_do_not_converge(prepared: Path, tmp_path: Path) -> None:
    memory = fitted(prepared, tmp_path / "run", *GIVEN_UP[:1], "joint.slots=2000")
    (alert,) = of_kind(memory, "alert")
    assert alert["step"] == 0 and alert["message"].startswith("0 of 2 pairs converged")
    assert [row["end"] for row in of_kind(memory, "pair")] == ["impossible"] * PAIRS


def test_a_conflict_is_told_before_the_fit_has_ended_and_stops_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = "joint.recipe={steps: 2, restarts: 1, lr: 1e-6}"
    clean = fitted(prepared, tmp_path / "clean", recipe)
    assert not of_kind(clean, "alert") and not [e for e in clean.events if e["event"] == "alert"]
    monkeypatch.setattr(kept, "opposition", lambda record: -1.0)
    monkeypatch.setattr(kept, "CONFIDENCE", 0.3)  # so that five pairs are enough
    memory = fitted(prepared, tmp_path / "run", recipe)
    (alert,) = of_kind(memory, "alert")
    assert (alert["monitor"], alert["stopped"]) == ("conflict", False) and alert["step"] < PAIRS
    place = [event["event"] for event in memory.events].index("alert")
    assert memory.events[place]["message"] == alert["message"]
    assert [e for e in memory.events[place:] if e["event"] == "progress"], "pairs were fitted after it"
    assert [row for row in memory.records if row["kind"] != "alert"] == clean.records


def test_of_all_pairs_one_chunk_at_a_time_is_in_memory(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and curves, counted when a part is saved; the files are those of a fit in one chunk, byte for byte."""
    add, alive = Saving.add, []

    def counted(self: Saving, part: Fitted) -> None:
        add(self, part)
        every = gc.get_objects()
        vectors = sum(each.nbytes for each in every if type(each) is torch.Tensor and each.shape[-2:] == (7, 64))
        alive.append((vectors, sum(type(each) is Record for each in every)))

    monkeypatch.setattr(Saving, "add", counted)
    options = ("joint.slots=7", "joint.columns=1", "joint.recipe={steps: 2, restarts: 2, lr: 0.1}")
    small = fitted(prepared, tmp_path / "small", *options)
    one, most = 2 * 7 * 64 * 4, max(vectors for vectors, _ in alive)
    assert len(alive) == PAIRS and one <= most <= 2 * one < PAIRS * one, "as they were kept, and as they are saved"
    assert max(records for _, records in alive) <= 2 * 2
    whole = fitted(prepared, tmp_path / "whole", *options, f"joint.chunk={PAIRS}")
    assert small.records == whole.records
    first, second = ({path.name: path.read_bytes() for path in sorted((folder / "artifacts" / JOB / VECTORS).iterdir())}
                     for folder in (tmp_path / "small", tmp_path / "whole"))  # fmt: skip
    assert first == second and set(first) == {"vectors.safetensors", "records.jsonl", "fit.json"}


def test_an_engine_with_two_devices_gives_the_same_files(tmp_path: Path) -> None:
    plan = plan_of("joint.recipe={steps: 5, restarts: 2, lr: 0.1}")
    for devices in (1, 2):
        run(plan.model_copy(update={"devices": devices}), tmp_path / f"run{devices}")
    assert contents(tmp_path / "run1") == contents(tmp_path / "run2")
    assert len(records(tmp_path / "run2", JOB, "pair")) == PAIRS


@pytest.mark.slow
def test_ray_actors_give_the_same_files(prepared: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        reason = "Ray is not installed: pip install 'stepwell[ray]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from stepwell.engine.ray_pool import RayPool

    def actors(ctx: Any, folder: str) -> RayPool:
        plan = RunFolder(folder).read_plan().model_copy(update={"engine": "ray", "devices": 2})
        return RayPool(JobCall(folder=folder, job=JOB, fingerprint="f", threads=1), WORK, plan)

    few = "joint.recipe={steps: 5, restarts: 2, lr: 0.1}"
    alone = fitted(prepared, tmp_path / "alone", few)
    assert fitted(prepared, tmp_path / "actors", few, pool=actors).records == alone.records
    assert contents(tmp_path / "actors") == contents(tmp_path / "alone")


def test_what_workers_do_wrong_is_a_record_and_costs_no_other_pair(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = fitted(prepared, tmp_path / "clean")
    faulty = fitted(prepared, tmp_path / "faulty", pool=processes)
    assert (tmp_path / "faulty" / "artifacts" / JOB / "killed-once").exists()
    bad = planted_fits.RAISES
    assert without(faulty, bad) == without(clean, bad)
    for kind, count in (("pair", PAIRS), ("target", 2 * PAIRS), ("restart", 4 * PAIRS)):
        assert len(of_kind(faulty, kind)) == len(of_kind(clean, kind)) == count
    assert [row["id"] for row in of_kind(faulty, "pair")] == [row["id"] for row in of_kind(clean, "pair")]
    pair, cause = of_kind(faulty, "pair")[bad], f"ArithmeticError: pair {bad} is planted"
    assert (pair["converged"], pair["exact"], pair["end"], pair["detail"]) == (False, False, "failed", cause)
    rows = [row for kind in ("target", "restart") for row in of_kind(faulty, kind) if row["id"] == pair["id"]]
    assert {(row["end"], row["detail"], row["nats"], row["steps"]) for row in rows} == {("failed", cause, None, None)}
    assert Counter(row["kind"] for row in rows) == {"target": 2, "restart": 4}
    assert {row["converged"] for row in rows if row["kind"] == "target"} == {False}
    # In the job's own process a pair that raises ends the same way.
    honest = Fitter.fit

    def planted(self: Fitter, chunk: range, *told: Any) -> None:
        planted_fits.raises(chunk)
        honest(self, chunk, *told)

    monkeypatch.setattr(Fitter, "fit", planted)
    assert fitted(prepared, tmp_path / "alone").records == faulty.records


def test_a_chunk_that_is_halved_changes_last_digits_only(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = fitted(prepared, tmp_path / "clean", "joint.chunk=4")
    honest = Fitter.fit

    def planted(self: Fitter, chunk: range, *told: Any) -> None:
        planted_fits.raises(chunk)
        honest(self, chunk, *told)

    monkeypatch.setattr(Fitter, "fit", planted)
    halved = fitted(prepared, tmp_path / "halved", "joint.chunk=4")
    ours, theirs = without(halved, planted_fits.RAISES), without(clean, planted_fits.RAISES)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("kind", "id", "mode", "restart", "converged", "exact", "held", "end", "steps"):
            assert mine.get(key) == other.get(key)
        if mine.get("nats") is not None:
            assert mine["nats"] == pytest.approx(other["nats"], rel=1e-3)
    last = of_kind(clean, "pair")[4]["id"]
    assert [r for r in ours if r["id"] == last] == [r for r in theirs if r["id"] == last], (
        "the other chunk is as it was"
    )
