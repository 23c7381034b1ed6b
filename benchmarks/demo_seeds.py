"""Does the demo work by luck? Its arms `cot` and `continuous` again with ten seeds, and a gate that wants nine of them.

    python benchmarks/demo_seeds.py [--seeds 10] [--out runs/demo-seeds]

About 20 minutes of two cores. The run resumes where it was stopped. Not part of `make bench`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from stepwell import load_plan, run
from stepwell.plan import Plan
from stepwell.plan.models import Criterion, GateSpec, Selector
from stepwell.store import read_records

BAR = 0.9


def plan(seeds: int) -> Plan:
    """The demo's plan with two arms, more seeds, and in place of its other gates one that asks about the seeds."""
    demo = load_plan("thoughts", rung="demo")
    kept = tuple(stage for stage in demo.stages if stage.name not in ("intervene", "probe", "trace"))
    stage = {"stage": "evaluate", "where": {"arm": ("cot", "continuous")}}
    criteria = tuple(
        Criterion(
            metric="correct", stage="evaluate", where={"kind": "item", "set": "test", "arm": arm}, comparison=">=",
            threshold=BAR, per="seed", need=max(1, seeds - 1), mode="point",
        )
        for arm in ("cot", "continuous")
    )  # fmt: skip
    gate = GateSpec(
        name="robust", asks=f"Do both arms reach {BAR:.0%} with all seeds but one?",
        after=(Selector.model_validate(stage),), criteria=criteria,
    )  # fmt: skip
    axes = {"arm": ("cot", "continuous"), "seed": tuple(range(seeds))}
    return demo.model_copy(update={"axes": axes, "stages": kept, "gates": (demo.gate("setup"), gate)})


def main() -> int:
    """Run the plan, print one line an arm and seed, and leave with 0 if the gate says go."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    given = arguments.parse_args()
    result = run(plan(given.seeds), given.out)
    print(f"{'arm':<12} {'seed':>4} {'right':>6} {'of':>5} {'restarts':>8}")
    for arm in ("cot", "continuous"):
        for seed in range(given.seeds):
            items = list(read_records(result.folder / "records" / f"evaluate.{arm}.{seed}.jsonl"))
            kinds = Counter(r["kind"] for r in read_records(result.folder / "records" / f"train.{arm}.{seed}.jsonl"))
            right = sum(item["correct"] for item in items)
            print(f"{arm:<12} {seed:>4} {right / len(items):>6.3f} {len(items):>5} {kinds['restart']:>8}")
    for verdict in result.verdicts:
        print(f"gate {verdict.gate}: {verdict.decision}: {verdict.reason}")
    return 0 if result.decision == "go" else 1


if __name__ == "__main__":
    sys.exit(main())
