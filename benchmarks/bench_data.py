"""ProsQA: graphs generated a second (aim: 20,000), and the audit of a file of the official training set's size.

Compared: the audit of what was generated finds no fault and counts every item; the same seed gives the same graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

import common
from stepwell.audit.data import FileAudit, audit_files
from stepwell.tasks.prosqa import generate_graphs, generate_items, write_items

TRAINING_SET = 17_886


def main(arguments: Sequence[str] | None = None) -> None:
    given = common.parser(__doc__).parse_args(arguments)
    common.header("bench_data", given, arguments)
    graphs, n = (500, 200) if given.quick else (20_000, TRAINING_SET)
    repeats = given.pairs or (1 if given.quick else 3)
    made = [generate_graphs("id", graphs, 0) for _ in range(2)]
    same = all(np.array_equal(made[0].edges, other.edges) for other in made)
    common.same("graphs of one seed", same, f"{graphs} graphs drawn twice")
    seconds = [common.timed(lambda: generate_graphs("id", graphs, 0), given.clock) for _ in range(repeats)]
    rates = sorted(graphs / each for each in seconds)
    print(f"  graphs a second: median {median(rates):,.0f}, {rates[0]:,.0f} to {rates[-1]:,.0f}, {repeats} times")
    common.aim("graphs a second", median(rates), ">=", 20_000, meant=not given.quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        items = []
        rendered = common.timed(lambda: items.extend(generate_items("id", n, 0)), given.clock)
        print(f"  generated and written as text: {n:,} items in {rendered:.2f} s")
        write_items(path, items)
        audits: list[FileAudit] = []
        seconds = [common.timed(lambda: audits.extend(audit_files([path])), given.clock) for _ in range(repeats)]
    sound = all(audit.ok and audit.n == n for audit in audits)
    common.same("audit", sound, f"{audits[0].n:,} items, {len(audits[0].findings)} findings")
    print(f"  audit of {n:,} items: median {median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f}")


if __name__ == "__main__":
    main()
