"""The rest of the account: data and audits, environment, and every change of a gate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stepwell.report.cells import Cell, Column, Row, Section, Table, dash, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped, headed, rule_cell, rules_on
from stepwell.report.verdicts import verdict_rows

SHOWN_PACKAGES = ("stepwell", "torch", "transformers", "numpy", "scipy", "pydantic", "safetensors", "plotly")

RULES = {
    "another-person": "rejects the option that has another person than the root as ancestor",
    "another-person-within-2": "the same within 2 hops",
    "another-person-within-3": "the same within 3 hops",
    "root-within-3": "takes the option that the root reaches in 3 hops",
    "lower-in-degree": "takes the option with fewer parents",
    "farther-person": "takes the option whose nearest person is farther",
    "first-named": "takes the option named first",
}


def data_section(data: RunData) -> Section:
    """Each set with its n, source, findings and shortcut rules; and the checks before training."""
    sets = {str(r.get("set")): r for r in data.of_kind("dataset")}
    # A set of study `imprint` has a task instead of a family, and no audit of its graphs.
    tasks = any(facts.get("task") is not None for facts in sets.values())
    findings = [record for record in data.of_kind("audit")]
    names = list(dict.fromkeys([*sets, *(str(r.get("set")) for r in findings)]))
    rows = []
    for name in names:
        found = [record for record in findings if str(record.get("set")) == name and record.get("count")]
        facts: Mapping[str, Any] = sets.get(name, {})
        rows.append(
            Row(
                cells=(
                    Cell(text=name),
                    number(facts.get("n")),
                    Cell(text=str(facts.get("source", ""))),
                    Cell(text=str(facts.get("task" if tasks else "family") or "")),
                    Cell(text=str(facts.get("sha256", ""))[:12], code=True),
                    number(facts.get("left_out")) if tasks else _audited(name, found, findings, data),
                )
            )
        )
    columns = (
        Column(name="set"),
        Column(name="n", numeric=True),
        Column(name="source"),
        Column(name="task" if tasks else "family"),
        Column(name="sha256"),
        Column(name="left out", note="no answer", numeric=True) if tasks else Column(name="audit"),
    )
    tables = [Table(title="Sets", columns=columns, rows=tuple(rows))] if rows else []
    tables += [*_findings(findings), *_shortcuts(data), *_checks(data)]
    return Section(
        key="audits",
        title="Data and audits",
        tables=tuple(tables),
        missing="" if tables else "No data set was recorded.",
    )


def _audited(name: str, found: list[Record], findings: list[Record], data: RunData) -> Cell:
    if found:
        return Cell(text=plural(len(found), "finding"), tone="alert")
    seen = {str(r.get("set")) for r in [*findings, *data.of_kind("shortcut")]}
    return Cell(text="no finding", tone="go") if name in seen else dash("this set was not audited")


def _findings(findings: list[Record]) -> list[Table]:
    rows = tuple(
        Row(
            cells=(
                Cell(text=str(record.get("set"))),
                Cell(text=str(record.get("code")), code=True),
                Cell(text=f"{number(record['count']).text} of {number(record.get('of'), why='n unknown').text}"),
                Cell(text=str(record.get("example") or "")),
            )
        )
        for record in findings
        if record.get("count")
    )
    columns = (Column(name="set"), Column(name="finding"), Column(name="items", numeric=True), Column(name="example"))
    return [Table(title="Findings", columns=columns, rows=rows)] if rows else []


def _shortcuts(data: RunData) -> list[Table]:
    sets = list(dict.fromkeys(str(r.get("set")) for r in data.of_kind("shortcut") if r.get("n")))
    found = {name: rules_on(data, name) for name in sets}
    rules = dict.fromkeys(rule for mine in found.values() for rule in mine)
    counts = {name: _common(of[None][1] for of in mine.values()) for name, mine in found.items()}
    rows = []
    for rule in rules:
        cells = (rule_cell(found[name].get(rule, {}).get(None), counts[name]) for name in sets)
        rows.append(Row(cells=(Cell(text=rule), *cells)))
    columns = (Column(name="rule"), *(Column(name=name, note=headed(counts[name]), numeric=True) for name in sets))
    title = "Rules that need no reasoning, accuracy in %"
    told = [f"`{rule}` {RULES[rule]}" for rule in rules if rule in RULES]
    note = f"{'; '.join(told)}. A rule that is silent on an item counts as half right." if told else ""
    return [Table(title=title, columns=columns, rows=tuple(rows), note=note)] if rows else []


def _common(counts: Iterable[int]) -> str:
    """The n of all rules of a set, "" where they differ."""
    found = set(counts)
    return f"{found.pop():,}" if len(found) == 1 else ""


def _checks(data: RunData) -> list[Table]:
    rows = tuple(
        Row(
            cells=(
                Cell(text=_place(record)),
                Cell(text=str(record.get("name"))),
                Cell(text="passed", tone="go") if record.get("passed") else Cell(text="failed", tone="no-go"),
                Cell(text=str(record.get("detail") or "")),
            )
        )
        for record in data.of_kind("check")
    )
    if not rows:
        return []
    place = "arm" if any(record.get("arm") is not None for record in data.of_kind("check")) else "model"
    columns = (Column(name=place), Column(name="check"), Column(name="result"), Column(name="detail"))
    every = Table(title=f"All {len(rows):,} checks", columns=columns, rows=rows, folded=True)
    return [_checks_by_name(list(data.of_kind("check"))), every]


def _place(record: Record) -> str:
    """What was checked: an arm, or a tier and a model."""
    return ", ".join(str(record[axis]) for axis in ("arm", "tier", "model") if record.get(axis) is not None)


def _checks_by_name(checks: list[Record]) -> Table:
    """One line for each check, however many arms and seeds it was made for; what failed in full."""
    rows = []
    for name, same in grouped(checks, lambda record: str(record.get("name"))).items():
        failed = [record for record in same if not record.get("passed")]
        told = "; ".join(f"{_place(record)}: {record.get('detail') or 'no detail'}" for record in failed)
        result = f"{len(same) - len(failed):,} of {len(same):,} passed"
        rows.append(Row(cells=(Cell(text=name), Cell(text=result, tone="no-go" if failed else "go"), Cell(text=told))))
    columns = [Column(name="check"), Column(name="result"), Column(name="failed")]
    if not any(row.cells[2].text for row in rows):
        columns, rows = columns[:2], [Row(cells=row.cells[:2]) for row in rows]
    return Table(title="Checks", columns=tuple(columns), rows=tuple(rows))


def overrides_section(data: RunData) -> Section:
    """Every gate that was changed after the run began: who may read a verdict must see it."""
    rows = []
    for override in data.policy.get("overrides") or ():
        changes = [str(change) for change in override.get("changes") or ()] or ["not recorded"]
        rows += [Row(cells=(Cell(text=str(override.get("reason", ""))), Cell(text=c, code=True))) for c in changes]
    logged = {row.cells[0].text for row in rows}
    for verdict in verdict_rows(data):
        if verdict.override and verdict.override not in logged:
            place = f"gate {verdict.gate}: {'; '.join(verdict.changes)}".rstrip(": ")
            rows.append(Row(cells=(Cell(text=verdict.override), Cell(text=place, code=True))))
    table = Table(title="", columns=(Column(name="reason given"), Column(name="what was changed")), rows=tuple(rows))
    digest = str(data.policy.get("sha256") or "")
    line = f"The gates in force have the sha256 `{digest[:16]}`." if digest else "No frozen policy was found."
    return Section(
        key="overrides",
        title="Overrides",
        lines=(line,),
        tables=(table,) if rows else (),
        missing="" if rows else "None: the gates stand as they were frozen before the first stage." if digest else "",
    )


def environment_section(data: RunData) -> Section:
    """Packages, commit, machine, as env.json has them."""
    env = data.env
    git = env.get("git") or {}
    packages: Mapping[str, Any] = env.get("packages") or {}
    dirty = git.get("dirty")
    state = "unknown whether clean" if dirty is None else "with uncommitted changes" if dirty else "clean"
    pairs = [
        ("rung", data.plan.get("rung")),
        ("plan seed", data.plan.get("seed")),
        ("engine", _engine(data.plan)),
        ("commit", f"{git['commit']} ({state})" if git.get("commit") else None),
        ("python", env.get("python")),
        ("platform", env.get("platform")),
        ("cpu", env.get("cpu")),
        ("cpus", env.get("cpu_count")),
        ("memory", f"{env['memory_bytes'] / 2**30:.1f} GiB" if env.get("memory_bytes") else None),
        ("GPUs", ", ".join(map(str, env.get("devices") or ())) or ("none" if "devices" in env else None)),
        ("run", env.get("run")),
        *((name, packages[name]) for name in SHOWN_PACKAGES if name in packages),
        *((f"data {name}", f"sha256 {str(digest)[:16]}") for name, digest in (env.get("data") or {}).items()),
    ]
    rows = tuple(
        Row(cells=(Cell(text=name), dash("none recorded") if value in (None, "") else Cell(text=str(value), code=True)))
        for name, value in pairs
    )
    return Section(
        key="environment",
        title="Environment",
        tables=(Table(title="", columns=(Column(name=""), Column(name="")), rows=rows),) if env else (),
        missing="" if env else "env.json is missing, so it is not known with what this run was made.",
    )


def _engine(plan: Mapping[str, Any]) -> str:
    return f"{plan.get('engine', 'inline')}, {plural(int(plan.get('workers') or 1), 'worker')}"
