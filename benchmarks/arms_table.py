"""The table of a finished run of `thoughts`, as Markdown: every arm and seed on every set, what is left of `continuous`
and the other arms with latents when their thoughts are tampered with, the rules that need no reasoning, and the cost.

    python benchmarks/arms_table.py RUN > docs/results/NAME.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import common  # noqa: F401  (puts src on the path)
from stepwell.report.cells import percent
from stepwell.report.folder import Record, RunData, read_folder
from stepwell.report.measures import counted, grouped, share


def cell(records: Sequence[Record], field: str) -> str:
    """Per cent right with its interval, items clustered over seeds."""
    found = share(records, field)
    if found is None or found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return percent(found.value)
    return f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield row(head)
    yield row(["---"] * len(head))
    yield from map(row, rows)
    yield ""


def clean_tables(run: RunData, clean: Sequence[Record], sets: Sequence[str]) -> Iterator[str]:
    """Free decoding of every arm and seed, then of all seeds of an arm, on every set, beside the rules."""
    cost = {str(e["job"]): float(e["cpu_seconds"]) for e in run.events if e.get("event") == "cost"}
    trained = {(r["arm"], r["seed"]): r["curriculum_stage"] for r in run.of_kind("trained")}
    restarts = grouped(run.of_kind("restart"), lambda r: (r["arm"], r["seed"]))
    by_job = grouped(clean, lambda r: (r["arm"], r["seed"]))
    rows = []
    for arm, seed in by_job:
        mine = [f"`{arm}`", str(seed)]
        for name in sets:
            found = share([r for r in by_job[arm, seed] if r["set"] == name], "correct")
            mine.append("-" if found is None or found.value is None else percent(found.value))
        seconds = cost.get(f"train.{arm}.{seed}")
        mine += [str(trained.get((arm, seed), "-")), str(len(restarts.get((arm, seed), [])))]
        rows.append([*mine, "-" if seconds is None else f"{seconds:.0f}"])
    sizes = [f"{name} (n {len({r['id'] for r in clean if r['set'] == name})})" for name in sets]
    yield "Per cent right, free decoding; CPU seconds of training, validation included.\n"
    yield from table(["arm", "seed", *sizes, "last stage", "restarts", "CPU seconds"], rows)
    yield "All seeds, with 95% intervals (items resampled, all seeds of an item together), beside the rules.\n"
    pooled = [
        [f"`{arm}`", *(cell([r for r in mine if r["set"] == name], "correct") for name in sets)]
        for arm, mine in grouped(clean, lambda r: r["arm"]).items()
    ]
    for rule, found in grouped(run.of_kind("shortcut"), lambda r: r["rule"]).items():
        by_set = {r["set"]: counted(r["correct"], r["n"]).value for r in found}
        values = [by_set.get(name) for name in sets]
        if any(value is not None for value in values):
            pooled.append([f"rule: {rule}", *("-" if value is None else percent(value) for value in values)])
    yield from table(["arm", *sizes], pooled)


def intervention_tables(tampered: Sequence[Record]) -> Iterator[str]:
    """Two-option forced choice under every condition, all seeds together, a table a set."""
    for name, mine in grouped(tampered, lambda r: r["set"]).items():
        arms = list(grouped(mine, lambda r: r["arm"]))
        by = grouped(mine, lambda r: (r["condition"], r["arm"]))
        yield f"Forced choice on `{name}` with the thoughts tampered with, per cent, 95% intervals as above.\n"
        conditions = list(grouped(mine, lambda r: r["condition"]))
        rows = [[each, *(cell(by.get((each, arm), []), "forced_correct") for arm in arms)] for each in conditions]
        yield from table(["condition", *(f"`{arm}`" for arm in arms)], rows)


def lines(run: RunData) -> Iterator[str]:
    """The whole page."""
    items = list(run.of_kind("item"))
    clean = [r for r in items if r["condition"] == "clean"]
    sets = list(grouped(clean, lambda r: r["set"]))
    yield from clean_tables(run, clean, sets)
    with_latents = {r["arm"] for r in items if r["latents"]}
    tampered = [r for r in (*items, *run.of_kind("intervention")) if r["arm"] in with_latents]
    touched = {(r["set"], r["arm"]) for r in tampered if r["condition"] != "clean"}
    yield from intervention_tables([r for r in tampered if (r["set"], r["arm"]) in touched])
    yield "Gates:\n"
    yield from (f"- `{r['gate']}`: {r['decision']}. {r['reason']}" for r in run.verdicts)


def main() -> int:
    """Print the page."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("run", type=Path)
    folder = arguments.parse_args().run
    run = read_folder(folder)
    print("\n".join(lines(run)))
    print(f"\nCommit {run.env['git']['commit']}{' with changes' if run.env['git']['dirty'] else ''}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
