"""The audits of a run: silent on clean records, and each planted fault found under its name alone."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stepwell.audit.run import CODES, Evidence, Fault, audit_run
from stepwell.cli import run as run_cli

Record = dict[str, Any]
ITEMS, LATENTS = 40, 4
CRITERION: Record = {
    "metric": "correct",
    "stage": "evaluate",
    "where": {"kind": "item", "arm": "continuous"},
    "minus": {"arm": "shared"},
    "comparison": ">=",
    "threshold": 0.05,
    "statistic": "mean",
    "mode": "interval",
    "claim": "mechanism",
}
GATES: list[Record] = [
    {"name": "difference", "criteria": [CRITERION], "bands": [], "routes": {"go": "next", "no-go": "next"}},
    {
        "name": "equivalence",
        "criteria": [{**CRITERION, "comparison": "<", "claim": "runs"}],
        "bands": [{"low": -0.05, "high": 0.05, "route": "equivalent"}],
        "routes": {"go": "next", "no-go": "stop", "inconclusive": "next"},
    },
]


def policy(gates: list[Record], **fields: Any) -> Record:
    text = json.dumps(gates, sort_keys=True, separators=(",", ":"))
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "gates": gates, "overrides": [], **fields}


def verdict(gate: str, decision: str = "go", route: str = "next", **fields: Any) -> Record:
    asked = next(each for each in GATES if each["name"] == gate)["criteria"][0]
    found = {name: asked[name] for name in ("metric", "stage", "comparison", "threshold", "statistic", "mode")}
    found |= {"decision": decision, "low": -0.02, "high": 0.03}
    return {"kind": "verdict", "gate": gate, "decision": decision, "route": route, "criteria": [found]} | fields


def items(arm: str, seed: int) -> list[Record]:
    draw = random.Random(f"{arm}{seed}")
    return [
        {"kind": "item", "arm": arm, "seed": seed, "set": "test", "id": f"test-{n:03d}", "condition": "clean"}
        | {"hops": 3 + n % 4, "latents": 0 if arm == "cot" else LATENTS, "correct": draw.random() < 0.8}
        | {"forced_correct": draw.random() < 0.8, "margin": round(draw.gauss(1, 2), 6), "answer": f"w{n}"}
        for n in range(ITEMS)
    ]


def interventions(arm: str, seed: int) -> list[Record]:
    draw = random.Random(f"{arm}{seed}i")
    clean = [
        {**{k: v for k, v in row.items() if k != "answer"}, "kind": "intervention", "family": "clean", "k": None}
        for row in items(arm, seed)
    ]
    found = list(clean)
    for k in range(1, LATENTS + 1):
        done = {"family": "noise-first", "condition": f"noise-first k={k} x1 propagating", "k": k}
        found += [{**row, **done, "forced_correct": draw.random() < 0.5} for row in clean]
    for count in (0, 2, 8):
        done = {"family": "thoughts", "condition": f"thoughts {count}", "latents": count}
        found += [{**row, **done} for row in clean]
    matched = {"family": "transplant-matched", "condition": "transplant-matched"}
    return found + [{**row, **matched} for row in clean[:30]]  # not every item has a donor


@cache
def clean_run() -> Evidence:
    records: dict[str, list[Record]] = {
        "data": [{"kind": "dataset", "set": "test", "n": ITEMS}],
        "audit": [{"kind": "audit", "set": "test", "code": "clean", "count": 0, "of": ITEMS}],
    }
    for seed in range(3):
        for arm in ("cot", "continuous", "shared"):
            records[f"evaluate.{arm}.{seed}"] = items(arm, seed)
        axes = {"arm": "continuous", "seed": seed, "set": "test"}
        records[f"intervene.continuous.{seed}"] = interventions("continuous", seed)
        records[f"probe.continuous.{seed}"] = [
            {"kind": "probe", **axes, "step": 4, "n": 30, "p_value": 0.001, "p_adjusted": 0.04, "permutations": 999},
            {"kind": "probe", **axes, "step": 3, "n": 40, "p_value": None, "p_adjusted": None, "permutations": 999},
            {"kind": "fold", **axes, "fold": 0, "used": ["test-001", "test-002"], "scored": ["test-003"]},
            {"kind": "check", **axes, "name": "scoring-folds", "passed": True, "detail": "5 folds"},
        ]
    return Evidence(
        plan={"axes": {"arm": ["cot", "continuous", "shared"]}, "gates": GATES},
        policy=policy(GATES),
        records=records,
        verdicts=[verdict("difference"), verdict("equivalence", route="equivalent")],
        texts={"report.html": "<p>p < 0.05, p = 0.001 and p &lt; 1e-300</p><script>p=0</script><b>5 points = 0</b>"},
    )


def changed(run: Evidence, job: str, change: Callable[[list[Record]], list[Record]]) -> Evidence:
    return replace(run, records={**run.records, job: change([dict(row) for row in run.records[job]])})


def every(**fields: Any) -> Callable[[list[Record]], list[Record]]:
    return lambda rows: [{**row, **fields} for row in rows]


def test_a_clean_run_has_no_fault():
    assert audit_run(clean_run()) == ()


def test_an_empty_run_has_no_fault():
    assert audit_run(Evidence(plan={}, policy={}, records={})) == ()


def shifted(rows: list[Record]) -> list[Record]:
    """Rows joined by place, one off: each id with the answers of the next."""
    told = ("hops", "answer", "correct", "forced_correct", "margin")
    return [
        {**row, **{key: other[key] for key in told if key in other}}
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]


def joined_by_place(rows: list[Record]) -> list[Record]:
    """Clean answers of the interventions that belong to other items with the same hops."""
    clean = [row for row in rows if row["family"] == "clean"]
    answers = [row["forced_correct"] for row in clean]
    for row, answer in zip(clean, [*answers[4:], *answers[:4]], strict=True):
        row["forced_correct"] = answer
    return rows


def too_deep(rows: list[Record]) -> list[Record]:
    """Items of fewer thoughts counted among those that have k of them."""
    return [{**row, "latents": 2} if row["k"] == 4 and row["id"] < "test-010" else row for row in rows]


def multipass(rows: list[Record]) -> list[Record]:
    noise = random.Random(1)
    return [
        {**row, "arm": "shared_in_passes", "margin": row["margin"] + noise.uniform(-1e-5, 1e-5)}
        for row in items("shared", 0)
    ]


Plant = Callable[[Evidence], Evidence]
PLANTED: list[tuple[str, Plant, str]] = [
    (
        "wrong-denominator",
        lambda run: changed(run, "intervene.continuous.0", too_deep),
        "has 2 thoughts and is counted at k = 4",
    ),
    (
        "wrong-denominator",
        lambda run: changed(
            run, "intervene.continuous.1", lambda rows: [r for r in rows if r["k"] != 3 or r["id"] > "test-004"]
        ),
        "5 of the 40 items that have 3 thoughts are left out",
    ),
    (
        "wrong-denominator",
        lambda run: changed(run, "intervene.continuous.1", lambda rows: [*rows, rows[-1]]),
        "item test-029 counts 2 times",
    ),
    (
        "wrong-denominator",
        lambda run: changed(run, "intervene.continuous.1", lambda rows: [*rows, {**rows[-1], "id": "other"}]),
        "1 items are not in the clean condition, the first is other",
    ),
    (
        "wrong-denominator",
        lambda run: changed(run, "probe.continuous.2", lambda rows: [{**rows[0], "n": 40}, *rows[1:]]),
        "step 4: n 40, but 30 items have that step",
    ),
    ("misaligned-rows", lambda run: changed(run, "evaluate.shared.1", shifted), "item test-000: hops 3 in"),
    (
        "misaligned-rows",
        lambda run: changed(run, "intervene.continuous.0", joined_by_place),
        "evaluation and interventions disagree on",
    ),
    (
        "gold-hops",
        lambda run: changed(run, "evaluate.shared.0", lambda rows: [{**r, "latents": r["hops"]} for r in rows]),
        "arm shared, seed 0: latents are each item its own number of hops",
    ),
    (
        "gold-hops",
        lambda run: changed(run, "evaluate.shared.0", lambda rows: [{**r, "latents": 6 - r["hops"]} for r in rows]),
        "latents are 0 to 3 between items",
    ),
    (
        "multipass-arm",
        lambda run: replace(run, plan={"axes": {"arm": ["shared", "shared-multi-pass"]}}),
        "arm shared-multi-pass: without a recycled state, many passes are the same function as one",
    ),
    (
        "multipass-arm",
        lambda run: replace(run, records={**run.records, "evaluate.shared_in_passes.0": multipass([])}),
        "the same margin on each of 40 items",
    ),
    (
        "target-unreachable",
        lambda run: changed(run, "audit", every(code="target-unreachable", count=3, example="Tom to wumpus")),
        "set test: 3 of 40 items, Tom to wumpus",
    ),
    (
        "scoring-folds",
        lambda run: changed(run, "probe.continuous.0", lambda rows: [*rows[:2], {**rows[2], "scored": ["test-001"]}]),
        "fold 0: 1 items are scored by a probe that saw them",
    ),
    (
        "scoring-folds",
        lambda run: changed(run, "probe.continuous.0", lambda rows: [*rows[:3], {**rows[3], "passed": False}]),
        "5 folds",
    ),
    (
        "one-seed-mechanism",
        lambda run: replace(
            run, records={job: rows for job, rows in run.records.items() if job[-2:] not in (".1", ".2")}
        ),
        "gate difference: go about a mechanism, from 1 seed(s)",
    ),
    (
        "policy-changed",
        lambda run: replace(run, policy={**run.policy, "sha256": "0" * 64}),
        "its sha256 does not match its gates",
    ),
    (
        "policy-changed",
        lambda run: replace(
            run, policy=policy([{**GATES[0], "criteria": [{**CRITERION, "threshold": 0.1}]}, GATES[1]])
        ),
        "gate difference: threshold 0.05 was decided, 0.1 was frozen",
    ),
    (
        "policy-changed",
        lambda run: replace(
            run, policy=policy(GATES, overrides=[{"reason": "too strict", "changes": ["gates.x: 1 -> 2"]}])
        ),
        "changed in the open after the run began: gates.x: 1 -> 2 (too strict)",
    ),
    ("policy-changed", lambda run: replace(run, policy={}), "no policy.json says what they were"),
    (
        "p-value-zero",
        lambda run: changed(run, "probe.continuous.0", lambda rows: [{**rows[0], "p_adjusted": 0.0}, *rows[1:]]),
        "probe.continuous.0: p_adjusted = 0 in a record `probe`",
    ),
    (
        "p-value-zero",
        lambda run: changed(run, "probe.continuous.0", lambda rows: [{**rows[0], "p_value": 1e-4}, *rows[1:]]),
        "p_value = 0.0001",
    ),
    (
        "p-value-zero",
        lambda run: replace(run, texts={"report.html": "<td>p = 0.000</td>"}),
        "report.html: “p = 0.000”",
    ),
    (
        "null-as-equivalence",
        lambda run: replace(run, policy=policy([{**GATES[0], "routes": {"no-go": "equivalent"}}, GATES[1]])),
        "gate difference: no-go is routed to `equivalent`",
    ),
    (
        "null-as-equivalence",
        lambda run: replace(run, verdicts=[verdict("difference", "inconclusive", "equivalent")]),
        "no interval within a margin of the plan says so",
    ),
    (
        "null-as-equivalence",
        lambda run: replace(
            run,
            verdicts=[verdict("equivalence", route="equivalent", override={"changes": ["gates.equivalence.bands"]})],
        ),
        "the margin was changed after the run began",
    ),
]


@pytest.mark.parametrize(("code", "plant", "example"), PLANTED, ids=[f"{c}-{n}" for n, (c, _, _) in enumerate(PLANTED)])
def test_a_planted_fault_is_found_under_its_name_alone(code: str, plant: Plant, example: str):
    (fault,) = audit_run(plant(clean_run()))
    assert (fault.code, fault.count >= 1) == (code, True)
    assert example in fault.example


def test_every_fault_of_the_list_is_planted():
    assert {code for code, _, _ in PLANTED} == set(CODES)


def test_arms_that_never_learned_anything_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch):
    """Arms without a margin, or with one margin for all items, have nothing to compare."""
    for margin in (None, 0.0):
        run = clean_run()
        for arm in ("cot", "shared"):
            run = changed(run, f"evaluate.{arm}.0", every(margin=margin))
        assert audit_run(run) == ()


def written(folder: Path, run: Evidence) -> Path:
    (folder / "records").mkdir()
    for job, rows in run.records.items():
        (folder / "records" / f"{job}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "records" / "gates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.verdicts))
    (folder / "policy.json").write_text(json.dumps(run.policy))
    (folder / "plan.yaml").write_text(json.dumps(run.plan))
    (folder / "report.html").write_text(run.texts["report.html"])
    return folder


def test_the_command_says_clean_or_names_the_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = written(tmp_path, clean_run())
    assert run_cli(["audit", "run", str(folder)]) == 0
    assert "10 audits, clean" in capsys.readouterr().out
    (folder / "report.html").write_text("p = 0.0")
    assert run_cli(["audit", "run", str(folder)]) == 1
    assert "p-value-zero" in capsys.readouterr().out
    assert run_cli(["audit", "run", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["faults"] == [vars(Fault(code="p-value-zero", count=1, example="report.html: “p = 0.0”"))]
    assert run_cli(["audit", "run", str(tmp_path / "none")]) == 3
    assert "no such run folder" in capsys.readouterr().err
