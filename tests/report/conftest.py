"""A synthetic run folder as a run would leave it: the files and record fields that stages, runner and gates write."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ARMS = ("cot", "direct", "continuous", "shared", "removal")
FINAL = {"cot": 0.95, "direct": 0.5, "continuous": 0.985, "shared": 0.51, "removal": 0.52}
CHANGED = {"zeroed": 0.45, "averaged": 0.5, "between": 0.43}
RULES = {"another-person": 0.6125, "lower-in-degree": 0.52, "first-named": 0.49}
OUTSIDE = {"7hop": -0.2, "dag": -0.08, "no-shortcut": -0.02}
LATENT = ("continuous", "shared")


def finding(metric: str, stage: str = "evaluate", about: str = "arm=continuous", **fields: Any) -> dict[str, Any]:
    found = {"statistic": "mean", "mode": "interval", "comparison": ">=", "decision": "go", "method": "wilson"}
    found |= {"value": None, "low": None, "high": None, "n": 0, "confidence": 0.95, "n_to_decide": None, "reason": ""}
    return {"metric": metric, "stage": stage, "about": about, "threshold": 0.0, **found, **fields}


def verdict(gate: str, decision: str, criteria: list[dict[str, Any]], why: str = "", **fields: Any) -> dict[str, Any]:
    reason = f"{decision}: {why or 'the interval lies wholly on the right side'}"
    route = "stop" if decision == "no-go" else "next"
    usual = {"mode": "interval", "n_to_decide": None, "override": None}
    return {"kind": "verdict", "gate": gate, "decision": decision, "route": route, "reason": reason, **usual} | {
        "criteria": criteria,
        **fields,
    }


class Run:
    """Writes a run folder; every part can be left out or replaced."""

    def __init__(self, path: Path, *, seeds: tuple[int, ...] = (0,), items: int = 200, steps: int = 600) -> None:
        self.path, self.seeds, self.items, self.steps = path, seeds, items, steps
        self.random = random.Random(7)
        self.forced: dict[tuple[str, int, str], bool] = {}
        (path / "records").mkdir(parents=True)
        (path / "jobs").mkdir()
        self.clock = 1_760_000_000.0

    def lines(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def event(self, event: str, *, after: float = 0.0, **fields: Any) -> None:
        self.clock += after
        self.lines("events.jsonl", [{"time": self.clock, "event": event, **fields}])

    def job(self, job: str, records: list[dict[str, Any]], *, seconds: float = 20.0, **facts: Any) -> None:
        """A finished job: records, marker, events."""
        self.lines(f"records/{job}.jsonl", records)
        self.mark(job, len(records))
        self.event("job-started", job=job, attempt=1)
        if facts:
            self.event("cost", job=job, **facts)
        self.event("job-done", after=seconds, job=job, seconds=seconds)

    def mark(self, job: str, lines: int) -> None:
        digest = hashlib.sha256(job.encode()).hexdigest()
        marker = {"job": job, "fingerprint": digest, "records": {"lines": lines, "bytes": 1, "sha256": digest}}
        (self.path / "jobs" / f"{job}.json").write_text(json.dumps({**marker, "artifacts": {}}))

    def plan(self, **changes: Any) -> None:
        per_run = {"arm": "arm", "seed": "seed"}
        plan = {
            "study": "thoughts",
            "title": "What does a continuous thought buy?",
            "question": "A model that replaces its written reasoning by latent positions solves the task. Is that due "
            "to the recycled hidden state, to the extra positions, or to the curriculum?",
            "rung": "demo",
            "seed": 0,
            "axes": {"arm": list(ARMS), "seed": list(self.seeds)},
            "engine": "process",
            "workers": 2,
            "hourly_price": 0.12,
            "currency": "USD",
            "stages": [
                {"name": "data", "kind": "prosqa.data"},
                {"name": "audit", "kind": "prosqa.audit", "needs": ["data"]},
                {"name": "check", "kind": "thoughts.check", "needs": ["data"], "each": {"arm": "arm"}},
                {"name": "train", "kind": "thoughts.train", "needs": ["data"], "each": per_run},
                {"name": "evaluate", "kind": "thoughts.evaluate", "needs": ["train", "data"], "each": per_run},
            ],
            "gates": [
                {"name": "set-up", "asks": "Is the data clean, and does every arm train?"},
                {"name": "baselines", "asks": "Does `cot` solve at least 75% of the test set?"},
                {"name": "curriculum", "asks": "Does `continuous` exceed 58% and `shared` 45% on the test set?"},
                {"name": "difference", "asks": "Does `continuous` beat `shared` by 5 points or more?"},
            ],
        }
        (self.path / "plan.yaml").write_text(yaml.safe_dump({**plan, **changes}, sort_keys=False))

    def policy(self, overrides: list[dict[str, Any]] | None = None) -> None:
        gates = [{"name": name} for name in ("set-up", "baselines", "curriculum", "difference")]
        digest = hashlib.sha256(json.dumps(gates, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        policy = {"sha256": digest, "gates": gates, "overrides": overrides or []}
        (self.path / "policy.json").write_text(json.dumps(policy))

    def env(self) -> None:
        env = {
            "run": "c0ffee00",
            "python": "3.11.2",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "host": "laptop",
            "cpu": "AMD EPYC 7B13",
            "cpu_count": 2,
            "memory_bytes": 8 << 30,
            "devices": [],
            "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
            "data": {},
            "packages": {"stepwell": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.3.0", "scipy": "1.17.1"},
        }
        (self.path / "env.json").write_text(json.dumps(env))

    @staticmethod
    def hops(name: str) -> Callable[[int], int]:
        """The hops of an item of a set, by its place."""
        return lambda item: 7 if name == "7hop" else 2 + item % 2

    def data(self, *, source: str = "generated") -> None:
        sets = {"train": "mini", "steer": "mini", "test": "mini", **{name: name for name in OUTSIDE}}
        digest = hashlib.sha256(b"set").hexdigest()
        records = [
            {"kind": "dataset", "set": name, "n": self.items, "sha256": digest, "source": source, "family": family}
            for name, family in sets.items()
        ]
        self.job("data", records, seconds=3)
        audit: list[dict[str, Any]] = []
        for name in sets:
            audit += [
                {"kind": "audit", "set": name, "n": self.items, "code": code, "count": 0, "of": self.items}
                for code in ("cyclic", "target-unreachable", "duplicate-item")
            ]
            every = range(self.items)
            for rule, accuracy in RULES.items():
                right = round(2 * self.items * (accuracy if name not in OUTSIDE else 0.5)) / 2
                by_hops = [[h, right * n / self.items, n] for h, n in Counter(map(self.hops(name), every)).items()]
                rules = {"rule": rule, "correct": right, "n": self.items, "by_hops": by_hops}
                audit.append({"kind": "shortcut", "set": name, **rules})
        self.job("audit", audit, seconds=2)
        for arm in ARMS:
            check = {"kind": "check", "arm": arm, "name": "label self-test", "passed": True}
            self.job(f"check.{arm}", [{**check, "detail": "overfits 8 items, decodes exactly"}], seconds=4)

    def train(self, arm: str, seed: int, *, alerts: int = 0, restarts: int = 0) -> None:
        axes = {"arm": arm, "seed": seed}
        records: list[dict[str, Any]] = [
            {"kind": "parameters", **axes, "trainable": 105_216 - 64 * (arm == "direct"), "total": 105_216}
        ]
        for attempt in range(restarts):
            reason = "no breakthrough after 400 steps"
            records.append({"kind": "restart", **axes, "attempt": attempt + 1, "reason": reason})
        curved = arm in ("continuous", "shared", "removal")
        stages = (0, 0.25, 0.55) if curved else (0,)
        for step in range(0, self.steps, 5):
            share = step / self.steps
            stage = sum(share >= start for start in stages) - 1
            level = FINAL[arm] if FINAL[arm] > 0.6 else 0.5
            drop = 0.2 * math.exp(-abs(share - stages[stage]) * 30) if stage else 0
            accuracy = 0.5 + (level - 0.5) / (1 + math.exp(-12 * (share - 0.2 - 0.04 * seed))) - drop
            noise = self.random.gauss(0, 0.03)
            loss = max(0.012, 0.75 * (1.02 - accuracy) + abs(noise) * 0.3)
            common = {**axes, "step": step, "epoch": step // 50, "curriculum_stage": stage, "latents": stage}
            if stage and step and not any(r["kind"] == "advance" and r["curriculum_stage"] == stage for r in records):
                records.append({"kind": "advance", **axes, "step": step, "curriculum_stage": stage, "reason": "0.85"})
            records.append({"kind": "step", **common, "loss": loss, "lr": 2e-3, "grad_norm": 0.7})
            if step % 25 == 0:
                right = round(256 * min(1.0, max(0.0, accuracy + noise)))
                records.append({"kind": "validation", **common, "accuracy": right / 256, "n": 256, "loss": loss})
        for number in range(alerts):
            alert = {"kind": "alert", **axes, "monitor": "flat-loss", "step": 300 + number}
            records.append({**alert, "message": "the loss has not fallen for 200 steps"})
        rate = 21_000 if arm != "continuous" else 14_000
        self.job(f"train.{arm}.{seed}", records, seconds=95, cpu_seconds=94.2, tokens_per_second=rate)

    def evaluate(self, arm: str, seed: int, *, sets: Iterable[str] = ("test", *OUTSIDE), prediction: str = "") -> None:
        records = []
        for name in sets:
            for item in range(self.items):
                level = min(0.99, max(0.5, FINAL[arm] + OUTSIDE.get(name, 0))) if FINAL[arm] > 0.6 else 0.5
                correct = self.random.random() < level
                forced = correct or self.random.random() < 0.1
                self.forced[arm, seed, f"{name}-{item:04d}"] = forced
                records.append(
                    {
                        "kind": "item",
                        "arm": arm,
                        "seed": seed,
                        "set": name,
                        "id": f"{name}-{item:04d}",
                        "condition": "clean",
                        "hops": self.hops(name)(item),
                        "correct": correct,
                        "forced_correct": forced,
                        "margin": self.random.gauss(4.0 if correct else -2.0, 1.0),
                        "chain_valid": correct if arm == "cot" else None,
                        "prediction": prediction or ("c4" if correct else "c1"),
                        "answer": "c4",
                        "latents": 3 if arm in LATENT else 0,
                    }
                )
        self.job(f"evaluate.{arm}.{seed}", records, seconds=6)

    def intervene(self, arm: str, seed: int) -> None:
        """Clean, three changes of all thoughts, and noise on the first k of three."""
        specs: list[dict[str, Any]] = [{"family": name, "condition": name} for name in ("clean", *CHANGED)]
        noise = {"family": "noise-first", "scale": 1.0}
        specs += [
            {**noise, "condition": f"noise-first k={k} x1 {how}", "k": k, "propagates": how == "propagating"}
            for how in ("propagating", "afterwards")
            for k in (1, 2, 3)
        ]
        records = []
        for spec in specs:
            for item in range(self.items):
                level = FINAL[arm] if spec["condition"] == "clean" else CHANGED.get(spec["family"], 0.7)
                correct = self.random.random() < (level if arm == "continuous" else FINAL[arm])
                usual = {"k": None, "position": None, "scale": None, "propagates": None, "donor": None, "latents": 3}
                what = {**usual, **spec, "vacuous": arm == "shared" and spec["family"] in ("averaged", "between")}
                changed = spec["family"] != "clean" and not what["vacuous"] and self.random.random() < 0.3
                found = {"correct": correct, "forced_correct": correct, "margin": 1.0 if correct else -1.0}
                if spec["family"] == "clean":  # the same question as the evaluation's
                    found["forced_correct"] = self.forced.get((arm, seed, f"test-{item:04d}"), correct)
                place = {"arm": arm, "seed": seed, "set": "test", "id": f"test-{item:04d}", "hops": 2 + item % 2}
                records.append(
                    {"kind": "intervention", **place, **what, **found, "flipped": changed, "answer_changed": changed}
                )
        self.job(f"intervene.{arm}.{seed}", records, seconds=3)

    def verdicts(self, *, upto: int = 4, override: dict[str, Any] | None = None) -> None:
        every = {"statistic": "every", "comparison": ">=", "threshold": 1.0, "method": "fact"}
        set_up = [
            finding("passed", "check", "kind=check", **every, n=5, reason="all 5 records are true"),
            finding("count", "audit", "kind=audit", **{**every, "comparison": "<="}, n=18, reason="all 18 are true"),
        ]
        wide = {"value": 0.475, "low": 0.388, "high": 0.562, "confidence": 0.975, "n_to_decide": 1_690}
        records = [
            verdict("set-up", "go", set_up, "every check passed and no audit found a fault"),
            verdict("baselines", "go", [finding("correct", value=0.955, low=0.917, high=0.976, threshold=0.75, n=200)]),
            verdict(
                "curriculum",
                "inconclusive",
                [
                    finding("correct", value=0.985, low=0.95, high=0.996, threshold=0.58, n=200, confidence=0.975),
                    finding("correct", about="arm=shared", **wide, threshold=0.45, n=200, decision="inconclusive"),
                ],
                "the interval of `shared`, 0.388 to 0.562, holds 0.45",
                n_to_decide=1_690,
            ),
            verdict(
                "difference",
                "go",
                [finding("correct", value=0.475, low=0.401, high=0.545, threshold=0.05, n=200, method="newcombe")],
            ),
        ]
        if override:
            records[1]["override"] = override
        self.lines("records/gates.jsonl", records[:upto])

    finding = staticmethod(finding)
    verdict = staticmethod(verdict)

    def whole(self, **how: Any) -> Path:
        """A complete run: all of the above."""
        self.plan()
        self.policy()
        self.env()
        self.event("run-started", jobs=17, engine="process", workers=2)
        estimated = {"data": None, "train": 0.1, "evaluate": 0.01}
        self.event("estimate", hours=0.11, device="2 CPU cores", price=0.0132, stages=estimated)
        self.data()
        for arm in ARMS:
            for seed in self.seeds:
                self.train(arm, seed, alerts=arm == "direct" and seed == 0, restarts=arm == "continuous" and seed == 0)
                self.evaluate(arm, seed, **how)
                if arm in LATENT:
                    self.intervene(arm, seed)
        self.verdicts()
        self.event("spent", device_seconds=540.0, stages={"data": 9.0, "train": 486.0, "evaluate": 36.0}, gaps={})
        self.event("run-done", decision="inconclusive")
        return self.path


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """A function that begins a run folder: new_run("name", seeds=(0, 1)) -> Run."""
    return lambda name="run", **how: Run(tmp_path / name, **how)


@pytest.fixture(scope="session")
def new_run_in() -> Callable[..., Run]:
    """The same in a folder of the caller's, for fixtures that outlive a test: new_run_in(folder) -> Run."""
    return lambda folder, **how: Run(folder / "run", **how)
