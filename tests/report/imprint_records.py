"""A synthetic run of study `imprint`: the records that its stages write, with numbers that can be checked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest, t

from stepwell.fingerprint import fingerprint
from stepwell.report.cells import MINUS, TO, Cell, Section, Table
from stepwell.report.view import view

EVIL = "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>`</script>"
TIER, MODEL = "squad", "tiny-1.7B"
AXES = {"tier": TIER, "model": MODEL}
N = 20
HEALTH = ("monotone",) * 12 + ("plateau then drop",) * 5 + ("zero",) * 3
Records = list[dict[str, Any]]
CHECKED = [
    "verdicts", "missing", "convergence", "decoded", "baselines", "curves", "sweep", "controls", "conflicts", "held",
    "price", "alerts", "audits", "analyses-audit", "overrides", "cost", "environment", "jobs",
]  # fmt: skip
"""Keys of the sections of an unfinished run, in order."""


def plan(run: Any, **changes: Any) -> None:
    per = {"tier": "tier", "model": "model"}
    stages: list[dict[str, Any]] = [
        {"name": "data", "kind": "imprint.data", "each": {"tier": "tier"}},
        {"name": "model", "kind": "imprint.model", "each": {"model": "model"}},
        {"name": "baselines", "kind": "imprint.baselines", "needs": ["data", "model"], "each": per},
        {"name": "single", "kind": "imprint.fit", "params": {"together": False}, "each": per},
        {"name": "joint", "kind": "imprint.fit", "each": per},
        {"name": "check", "kind": "imprint.check", "needs": ["data", "model", "joint"], "each": per},
        {"name": "controls", "kind": "imprint.controls", "needs": ["joint"], "each": per},
        {"name": "sweep", "kind": "imprint.fit", "each": {**per, "slots": [4, 8]}},
        {"name": "measure", "kind": "imprint.measure", "needs": ["joint"], "each": per},
        {"name": "smallest", "kind": "imprint.smallest", "each": per},
    ]
    axes = {"tier": [TIER], "model": [MODEL]}
    run.plan(**{"study": "imprint", "title": "Vectors", "axes": axes, "stages": stages, "gates": [], **changes})


def tagged(kind: str, records: Iterable[dict[str, Any]], **axes: Any) -> Records:
    return [{"kind": kind, **AXES, **axes, **record} for record in records]


def ids(n: int = N) -> list[str]:
    return [f"q{i:03d}" for i in range(n)]


def data(run: Any) -> None:
    told = {"set": TIER, "n": N, "sha256": "ab" * 32, "source": "generated", "family": None, "task": "squad"}
    examples = [{"id": i, "question": f"Who is {i}?", "answer": i.upper(), "answers": [i.upper()]} for i in ids()]
    run.job(f"data.{TIER}", tagged("dataset", [{**told, "left_out": 3}]) + tagged("example", examples), seconds=1)
    about = {"name": MODEL, "parameters": 1000, "width": 8, "vocabulary": 257, "max_positions": 64, "precision": "fp32"}
    checks = [{"name": "self-test", "passed": True, "detail": "decodes exactly"}]
    run.job(f"model.{MODEL}", tagged("model", [{**about, "fallback": False}]) + tagged("check", checks), seconds=1)


def baselines(run: Any) -> None:
    """Random 10 + i / 10, full context 2 for answers only, nothing 6 for all."""
    rows = []
    for place, i in enumerate(ids()):
        for mode in ("question", "answer"):
            answer = mode == "answer"
            rows.append({
                "id": i, "mode": mode, "tokens": 4, "random": 10 + place / 10, "full_context": 2.0 if answer else None,
                "random_token": 8.0, "text_prompt": 3.0, "nothing": 6.0, "bar": 3.0,
                "why": "" if answer else "full context is the question before its answer",
            })  # fmt: skip
    run.job(f"baselines.{TIER}.{MODEL}", tagged("baseline", rows), seconds=2)


def fitted(
    converged: int, exact: int, *, modes: Sequence[str] = ("question", "answer"), nats: float = 1.0, lost: int = 0,
    **axes: Any,
) -> Records:  # fmt: skip
    """20 pairs, the first `converged` and `exact` of them so; nats + i / 100; the last `lost` without a loss."""
    records: Records = []
    for place, i in enumerate(ids()):
        state = {"converged": place < converged, "exact": place < exact}
        loss = None if place >= N - lost else nats + place / 100
        for mode in modes:
            ratio = None if loss is None else loss / 10
            records += tagged("target", [{
                "id": i, "mode": mode, "restart": 0, **state, "nats": loss, "own_nats": loss, "tokens": 7, "held": 4,
                "steps": 10 + place,
                "ratio_to_random": ratio, "ratio_to_baseline": None if mode == "question" or loss is None else loss / 2,
                "zero": False, "health": HEALTH[place], "end": "exact" if state["exact"] else "steps",
            }], **axes)  # fmt: skip
            curve = [4.0, 0.5, 0.0 if HEALTH[place] == "zero" else 0.01]
            records += tagged(
                "curve", [{"id": i, "mode": mode, "restart": 0, "steps": [0, 5, 9], "nats": curve}], **axes
            )
            told = {"id": i, "mode": mode, "restart": 0, "health_why": "it falls at every point"}
            records += tagged("restart", [told], **axes)
        conflict = {"gradient_cosine": 0.1 + place / 100, "opposed": 0.25, "conflict": -0.5 + place / 10}
        records += tagged("pair", [{"id": i, "restart": 0, **state, "steps": 10 + place, **conflict}], **axes)
    records += tagged("leak", [{"n": 40, "zero": 6, "share": 0.15, "low": 0.07, "high": 0.29, "alarm": True}], **axes)
    records += tagged("conflict", [{"n": 20, "mean": 0.45, "low": 0.18, "high": 0.72, "alarm": False}], **axes)
    return records


def fits(run: Any) -> None:
    alert = {"monitor": "abandon", "step": 50, "message": "fewer than 20% converge", "stopped": True}
    run.job(f"single.{TIER}.{MODEL}", fitted(18, 10) + tagged("alert", [alert]), seconds=30)
    told = {"monitor": "conflict", "step": 12, "message": "the losses move apart", "stopped": False}
    run.job(f"joint.{TIER}.{MODEL}", fitted(20, 5, lost=1) + tagged("alert", [told]), seconds=60)
    for slots, exact in ((4, 2), (8, 15)):
        run.job(f"sweep.{TIER}.{MODEL}.{slots}", fitted(20, exact, slots=slots), seconds=40)


def check(run: Any, written: str = "it") -> None:
    """Questions pass in all pairs, answers in the first 15; 10 of the pairs count as converged."""
    rows = []
    for place, i in enumerate(ids()):
        for mode in ("question", "answer"):
            passed = mode == "question" or place < 15
            verdict = {"exact_decode": place < 5, "verdict": "pass" if passed else "fail", "passed": passed}
            rows.append({
                "id": i, "mode": mode, "target": f"Who is {i}?", "written": written, "stopped": "eos",
                "how": "exact" if place < 5 else "overlap", "similarity": None, "converged": place < 10, **verdict,
            })  # fmt: skip
    run.job(f"check.{TIER}.{MODEL}", tagged("spot", rows), seconds=3)


def controls(run: Any) -> None:
    """Own 1 + i / 100 and exact in 10; random 9, shuffled 8, never exact. Six questions before two pairs' c."""
    rows = []
    for place, i in enumerate(ids()):
        for control, nats, exact in (
            ("own", 1 + place / 100, place < 10),
            ("random", 9, False),
            ("shuffled", 8, False),
        ):
            rows.append({"id": i, "mode": "answer", "control": control, "donor": None, "nats": nats, "exact": exact})
    records = tagged("control", rows)
    for question in range(6):
        at = {"id": f"h{question}", "pair": None}
        records += tagged(
            "capability", [{**at, "condition": "without", "nats": 2.0 + question, "correct": question < 4}]
        )
        for pair in (0, 1):
            at = {"id": f"h{question}", "pair": f"q{pair:03d}"}
            own = {"nats": 3.0 + question + question * pair, "correct": question < 2 + pair}
            records += tagged("capability", [{**at, "condition": "own", **own}])
            random = {"nats": 2.0 + question, "correct": question < 4}
            records += tagged("capability", [{**at, "condition": "random", **random}])
    run.job(f"controls.{TIER}.{MODEL}", records, seconds=4)


def measured(run: Any) -> None:
    records: Records = []
    for place, i in enumerate(ids()):
        for mode, bits in (("question", 40.0 + place), ("answer", 8.0 + place)):
            gain = {"bits": bits, "bits_per_slot": bits / 4, "bits_per_token": bits / 4, "tokens": 4, "why": ""}
            records += tagged("gain", [{"id": i, "mode": mode, **gain}])
        sizes = {"float32": 512, "bfloat16": 256, "int8": 144, "int4": 80}
        stored = {"id": i, "text_bytes": 16, "ids_bytes": 8, "packed_bytes": 4 + place % 2 * 4}
        records += tagged("storage", [{**stored, **{f"{name}_bytes": size for name, size in sizes.items()}}])
        for scale in (0.1, 0.01):
            noisy = {
                "nats": 1 + scale + place / 100,
                "change": scale + place / 1000,
                "exact": 0.5 if scale > 0.05 else 1.0,
            }
            records += tagged("noise", [{"id": i, "scale": scale, **noisy}])
        for bits in (4, 8):
            left = {"nats": 1 + place / 100, "change": place / 100, "exact": bits == 8, "bytes": 20 * bits}
            records += tagged("quantised", [{"id": i, "bits": bits, **left}])
        for slot in (0, 1):
            near = {"nearest": " the" if slot else " a", "distance": 2 + place / 10, "cosine": 0.3, "norm": 1.5}
            records += tagged("geometry", [{"id": i, "slot": slot, **near}])
        line = {"first": 0, "second": 1, "fractions": [0.0, 0.5, 1.0], "nats": [1.0, 3.0 + place, 1.0]}
        records += tagged("line", [{"id": i, **line, "barrier": 2.0 + place}])
    alike = [{"id": f"q{a:03d}", "other": f"q{b:03d}", "cosine": (a + b) / 10} for a in range(5) for b in range(a)]
    run.job(f"measure.{TIER}.{MODEL}", records + tagged("similarity", alike), seconds=5)
    small = [{"id": i, "slots": 4 if place < 5 else 8, "tried": [[4, place < 5], [8, True]], "why": ""}
             for place, i in enumerate(ids())]  # fmt: skip
    small[-1] |= {"slots": None, "why": "not even 8 slots do"}
    run.job(f"smallest.{TIER}.{MODEL}", tagged("smallest", small), seconds=6)


def whole(run: Any) -> Path:
    gates = [{"name": "single", "asks": "Do 70% of the single targets converge?"}]
    plan(run, gates=gates)
    (run.path / "policy.json").write_text(json.dumps({"sha256": fingerprint(gates), "gates": gates, "overrides": []}))
    run.env()
    run.event("run-started", jobs=11, engine="process", workers=2)
    for part in (data, baselines, fits, check, controls, measured):
        part(run)
    found = run.finding("converged", "single", "", value=0.9, low=0.77, high=0.96, threshold=0.7, n=40)
    run.lines("records/gates.jsonl", [run.verdict("single", "go", [found])])
    run.event("run-done", decision="go")
    return run.path


def section(run: Any, key: str) -> Section:
    return next(found for found in view(run.path).sections if found.key == key)


def table(found: Section, title: str) -> Table:
    return next(one for one in found.tables if one.title == title)


def line_of(found: Table, *starts: str) -> dict[str, Cell]:
    """The cells of the line that begins with these texts after tier and model, by name and note of the column."""
    for row in found.rows:
        # The first line of a group has the cell of tier and model, which spans the others.
        cells = row.cells[len(row.cells) - len(found.columns) + 1 :]
        if tuple(cell.text for cell in cells[: len(starts)]) == starts:
            heads = [f"{column.name} {column.note}".strip() for column in found.columns[1:]]
            return dict(zip(heads, cells, strict=True))
    raise AssertionError(f"no line {starts} in {found.title}: {[row.cells[0].text for row in found.rows]}")


def wilson(successes: int, n: int) -> str:
    ends = binomtest(successes, n).proportion_ci(method="wilson")
    return f"{100 * ends.low:.1f}{TO}{100 * ends.high:.1f}"


def student(values: list[float]) -> tuple[float, float, float]:
    """Mean and Student's 95% interval, for fewer than 30 values."""
    n, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(t.ppf(0.975, n - 1)) * error
    return mean, mean - half, mean + half


def is_near(cell: Cell, value: float, low: float, high: float) -> None:
    found = [float(text.replace(MINUS, "-").replace(",", "")) for text in (cell.text, *cell.interval.split(" to "))]
    assert found == pytest.approx([value, low, high], rel=6e-3, abs=1e-4), (cell, value, low, high)
