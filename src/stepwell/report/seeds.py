"""What each run of each arm came to: one line a seed, restarts and alerts counted and told."""

from __future__ import annotations

from dataclasses import replace

from stepwell.report.accuracy import first_set, jobs_of, seed_tables
from stepwell.report.cells import Cell, Column, Row, Section, Table, dash, number, plural
from stepwell.report.curves import finite, job_of
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import counted, grouped, is_clean, rule_cell, rules_on, share, share_cell

STEER = "steer"
"""The split that validation asks."""
NUMERIC_AXES = ("vectors", "seed", "slots")
AXES = ("arm", "tier", "model", *NUMERIC_AXES)
"""What the jobs of a study are told apart by."""


def seeds_section(folder: RunData) -> Section:
    """What each run of each arm came to, restarts and alerts counted."""
    name = first_set(folder)
    jobs = _training_jobs(folder)
    checked = {int(record["n"]) for record in folder.of_kind("validation") if record.get("n")}
    tested = [r for r in folder.of_kind("item") if str(r.get("set")) == name and is_clean(r)]
    counts = {len(group) for group in grouped(tested, job_of).values()}
    rows = [_seed_row(folder, job, name, alike=(len(checked) == 1, len(counts) == 1)) for job in jobs]
    columns = (
        Column(name="arm"),
        Column(name="seed", numeric=True),
        Column(name="trainable", note="parameters", numeric=True),
        Column(name="steps", numeric=True),
        Column(name="stage", note="last", numeric=True),
        Column(name="loss", note="last, nats", numeric=True),
        Column(name="validation", note=f"last, %{_counted_over(checked)}", numeric=True),
        Column(name=f"set {name}" if name else "test", note=f"free, %{_counted_over(counts)}", numeric=True),
        Column(name="restarts", numeric=True),
        Column(name="alerts", numeric=True),
    )
    rows += _rule_rows(folder, name, (_common(checked), _common(counts))) if rows else []
    total = sum(1 for _ in folder.of_kind("restart"))
    note = f"{plural(total, 'restart')} in all: a restart begins anew with another seed." if total else "No restart."
    table = Table(title="Each arm and seed", columns=columns, rows=tuple(rows), note=note)
    return Section(
        key="seeds",
        title="Seeds",
        tables=(table, *_restarts(folder), *seed_tables(folder)) if rows else (),
        missing="" if rows else "No training was recorded.",
    )


def alerts_section(folder: RunData) -> Section:
    """What the monitors said while training ran."""
    records = [
        {**record, "stage": job.partition(".")[0]}
        for job in sorted(folder.records)
        for record in folder.records[job]
        if record.get("kind") == "alert"
    ]
    axes = [axis for axis in AXES if any(record.get(axis) is not None for record in records)]
    # Where one stage only can raise an alert, its name says nothing.
    axes = ["stage"] * (len({record["stage"] for record in records}) > 1) + axes
    rows = tuple(
        Row(
            cells=(
                *(_axis(axis, record) for axis in axes),
                Cell(text=str(record.get("monitor", "")), code=True),
                number(record.get("step")),
                Cell(text=str(record.get("message", ""))),
            )
        )
        for record in records
    )
    columns = (
        *(Column(name=axis, numeric=axis in NUMERIC_AXES) for axis in axes),
        Column(name="monitor"),
        Column(name="step", numeric=True),
        Column(name="message"),
    )
    table = Table(title=plural(len(rows), "alert"), columns=columns, rows=rows)
    return Section(
        key="alerts",
        title="Alerts",
        tables=(table,) if rows else (),
        missing="" if rows else "The monitors raised no alert.",
    )


def _axis(axis: str, record: Record) -> Cell:
    value = record.get(axis)
    return number(value) if axis in NUMERIC_AXES else Cell(text=str("" if value is None else value), code=True)


def _training_jobs(folder: RunData) -> list[tuple[str, str]]:
    return jobs_of(folder, (record for kind in ("step", "validation") for record in folder.of_kind(kind)))


def _counted_over(counts: set[int]) -> str:
    """The n for the head of a column, where it is the same for all."""
    return f", n {common}" if (common := _common(counts)) else ""


def _common(counts: set[int]) -> str:
    return f"{next(iter(counts)):,}" if len(counts) == 1 else ""


def _seed_row(folder: RunData, job: tuple[str, str], name: str, *, alike: tuple[bool, bool]) -> Row:
    arm, seed = job

    def mine(kind: str) -> list[Record]:
        return [record for record in folder.of_kind(kind) if job_of(record) == job]

    steps, validations = mine("step"), mine("validation")
    # Parameters are counted once an arm, or once a run of it.
    parameters = mine("parameters") or [r for r in folder.of_kind("parameters") if str(r.get("arm")) == arm]
    items = [record for record in mine("item") if str(record.get("set")) == name and is_clean(record)]
    restarts, alerts = mine("restart"), mine("alert")
    last = steps[-1] if steps else {}
    checked = validations[-1] if validations else {}
    accuracy, n = finite(checked.get("accuracy")), checked.get("n")
    measured = counted(round(accuracy * n), int(n)) if accuracy is not None and n else None
    return Row(
        cells=(
            Cell(text=arm, code=True),
            Cell(text=seed),
            number(parameters[-1].get("trainable") if parameters else None),
            number(last.get("step"), why="no step recorded"),
            number(last.get("curriculum_stage", checked.get("curriculum_stage")), why="no curriculum"),
            number(last.get("loss"), why="not finite" if last else "no step recorded"),
            share_cell(measured, "no validation recorded", count="" if alike[0] or not n else f"n {n:,}"),
            share_cell(
                share(items, "correct"), "not evaluated", count="" if alike[1] or not items else f"n {len(items):,}"
            ),
            number(len(restarts)),
            number(len(alerts)) if not alerts else Cell(text=f"{len(alerts):,}", tone="alert"),
        ),
        group=arm,
    )


def _rule_rows(folder: RunData, name: str, common: tuple[str, str]) -> list[Row]:
    """The rules that need no reasoning, on the set that the runs are shown on and on the steering split."""
    steer, test = rules_on(folder, STEER), rules_on(folder, name)
    untrained = dash("a rule is not trained")
    before, after = replace(untrained, columns=4), replace(untrained, columns=2)
    rows = []
    for rule, found in test.items():
        validation = rule_cell(steer.get(rule, {}).get(None), common[0])
        cells = (Cell(text=rule, columns=2), before, validation, rule_cell(found[None], common[1]), after)
        rows.append(Row(cells=cells, group="rules"))
    return rows


def _restarts(folder: RunData) -> tuple[Table, ...]:
    rows = tuple(
        Row(
            cells=(
                Cell(text=str(record.get("arm", "")), code=True),
                number(record.get("seed")),
                number(record.get("attempt")),
                Cell(text=str(record.get("reason", ""))) if record.get("reason") else dash("no reason recorded"),
            )
        )
        for record in folder.of_kind("restart")
    )
    columns = (
        Column(name="arm"),
        Column(name="seed", numeric=True),
        Column(name="attempt", numeric=True),
        Column(name="reason"),
    )
    return (Table(title="Restarts", columns=columns, rows=rows),) if rows else ()
