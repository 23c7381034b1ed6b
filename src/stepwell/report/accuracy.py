"""What the arms answered: per test set and hops, beside the shortcut rules; and on families never trained on.

Everything is computed from `item`, `shortcut` and `dataset` records. Accuracy is in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stepwell.report.cells import MINUS, Cell, Chart, Column, Row, Section, Series, Table, dash, joined, number, plural
from stepwell.report.curves import job_of
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import (
    common_count,
    counted,
    grouped,
    has_graphs,
    headed,
    is_clean,
    mean,
    own_count,
    point,
    rule_cell,
    rules_on,
    share,
    share_cell,
)

OUT_OF_DISTRIBUTION = frozenset({"7hop", "8hop", "dag", "dense", "no-shortcut"})
CHANCE = 50.0
WITH_OPTIONS = (
    "Free decoding counts an answer that the model wrote itself; forced choice, which of the two options it finds more "
    "probable. Below the arms stand rules that answer without reasoning; what they do is told under Data and audits."
)
WITHOUT_OPTIONS = (
    "Free decoding: the answer that the model wrote itself, counted where it is the right text or the same number. "
    "These items are a question, steps and an answer, without a graph and two options. So there is no forced choice "
    "and no margin, no chance level, no rule that answers without reasoning, and nothing that says whether written "
    "steps are valid; in place of hops stands the number of steps."
)


def accuracy_section(folder: RunData) -> Section:
    """Accuracy per arm, test set and hops, free decoding and forced choice, beside the shortcut rules."""
    clean = _clean(folder)
    sets = [name for name in _sets(clean) if family_of(folder, name) not in OUT_OF_DISTRIBUTION]
    tables = tuple(set_table(folder, name, way, _of_set(clean, name)) for name in sets for way in ways_of(folder))
    return Section(
        key="accuracy",
        title="Accuracy",
        lines=(WITH_OPTIONS if has_graphs(folder) else WITHOUT_OPTIONS,) if tables else (),
        charts=tuple(_set_chart(folder, name, _of_set(clean, name)) for name in sets),
        tables=tables,
        missing="" if tables else "No evaluated items: no evaluation has finished.",
    )


def outside_section(folder: RunData) -> Section:
    """Accuracy on the families that training never drew from."""
    clean = _clean(folder)
    sets = [name for name in _sets(clean) if family_of(folder, name) in OUT_OF_DISTRIBUTION]
    missing = "" if sets else "No set of another family was evaluated in this run."
    tables: tuple[Table, ...] = ()
    if sets:
        tables = tuple(_families_table(folder, way, sets, clean) for way in WAYS)
        tables += tuple(
            set_table(folder, name, way, mine)
            for name in sets
            if len(hops_of(mine := _of_set(clean, name))) > 1
            for way in WAYS
        )
    return Section(key="outside", title="Out of distribution", tables=tables, missing=missing)


def examples_section(folder: RunData) -> Section:
    """The first wrong answers of each arm, as the model wrote them."""
    clean = _clean(folder)
    rows = []
    for arm in folder.arms():
        wrong = [r for r in clean if str(r.get("arm")) == arm and r.get("correct") is not None and not r["correct"]]
        for record in wrong[:2]:
            rows.append(
                Row(
                    cells=(
                        Cell(text=arm, code=True),
                        Cell(text=str(record.get("set", ""))),
                        Cell(text=str(record.get("id", "")), code=True),
                        number(record.get("hops"), why="hops not recorded"),
                        Cell(text=_clipped(record.get("prediction")), code=True),
                        Cell(text=_clipped(record.get("answer")), code=True),
                    ),
                    group=arm,
                )
            )
    columns = (
        Column(name="arm"),
        Column(name="set"),
        Column(name="item"),
        Column(name="hops" if has_graphs(folder) else "steps", numeric=True),
        Column(name="written"),
        Column(name="right answer"),
    )
    table = Table(title="The first two wrong answers of each arm", columns=columns, rows=tuple(rows))
    return Section(
        key="examples",
        title="Wrong answers, as written",
        tables=(table,) if rows else (),
        missing="" if rows else ("Every evaluated answer is right." if clean else "No evaluated items."),
    )


def family_of(folder: RunData, name: str) -> str:
    """The family a data set was drawn from; "" where no `dataset` record names it."""
    return next((str(r.get("family") or "") for r in folder.of_kind("dataset") if str(r.get("set")) == name), "")


def _clean(folder: RunData) -> list[Record]:
    return [record for record in folder.of_kind("item") if is_clean(record)]


def _sets(items: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(record.get("set")) for record in items))


def _of_set(items: Sequence[Record], name: str) -> list[Record]:
    return [record for record in items if str(record.get("set")) == name]


def seed_tables(folder: RunData) -> tuple[Table, ...]:
    """Every set by arm and seed; none where all items were asked under one seed, for then those of the sets say it."""
    clean = _clean(folder)
    if len({str(record.get("seed")) for record in clean}) < 2:
        return ()
    return tuple(
        set_table(folder, name, way, _of_set(clean, name), seeds=True)
        for name in _sets(clean)
        for way in ways_of(folder)
    )


def set_table(folder: RunData, name: str, way: Way, items: Sequence[Record], *, seeds: bool = False) -> Table:
    """One way of answering, over all hops and per hop count: arms (and their seeds) first, then the rules."""

    def line_of(record: Record) -> tuple[str, ...]:
        return job_of(record)[: 1 + seeds]

    groups = grouped(items, lambda r: (line_of(r), r.get("hops"))) | grouped(items, lambda r: (line_of(r), None))
    counts = {
        hop: common_count([group for key, group in groups.items() if key[1] == hop]) for hop in [None, *hops_of(items)]
    }
    rows = []
    for line in jobs_of(folder, items) if seeds else [(arm,) for arm in folder.arms()]:
        cells = [Cell(text=line[0], code=True), *(Cell(text=seed) for seed in line[1:])]
        for hop, count in counts.items():
            chosen = groups.get((line, hop), [])
            why = f"no {way.title.lower()} recorded" if chosen else "not evaluated on this set"
            cells.append(share_cell(share(chosen, way.field), why, count=own_count(chosen, count)))
        cells += [way.extra(groups.get((line, None), []))] if way.extra else []
        rows.append(Row(cells=tuple(cells), group=line[0] if seeds else "arms"))
    for rule, found in rules_on(folder, name).items():
        told = (rule_cell(found.get(hop), count, why="not counted by hops") for hop, count in counts.items())
        head = Cell(text=rule, columns=2 if seeds else 1)
        rows.append(Row(cells=(head, *told, dash("a rule has none")), group="rules"))
    columns = [Column(name="arm"), *([Column(name="seed", numeric=True)] if seeds else [])]
    for hop, count in counts.items():
        named = "all" if hop is None else plural(int(hop), "hop" if has_graphs(folder) else "step")
        columns.append(Column(name=named, note=headed(count), numeric=True))
    columns += [Column(name=way.extra_name, note=way.extra_unit, numeric=True)] if way.extra else []
    title = f"Set {name}: {way.title.lower()}{' of each seed' if seeds else ''}, accuracy in %"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows), folded=seeds)


def hops_of(items: Sequence[Record]) -> list[int]:
    """The hop counts that records have, fewest first."""
    return sorted({record["hops"] for record in items if record.get("hops") is not None})


def jobs_of(folder: RunData, records: Iterable[Record]) -> list[tuple[str, str]]:
    """Arm and seed of records, each once: arms in the plan's order, and their seeds by number."""
    order = {arm: place for place, arm in enumerate(folder.arms())}
    jobs = {job_of(record) for record in records}
    return sorted(jobs, key=lambda job: (order.get(job[0], len(order)), job[1].zfill(9)))


def _valid_chain(records: Sequence[Record]) -> Cell:
    return share_cell(share(records, "chain_valid"), "this arm writes no chain")


def _margin(records: Sequence[Record]) -> Cell:
    estimate = mean(records, "margin")
    if estimate is None or estimate.value is None:
        return dash("no margin recorded")
    low, high = estimate.low, estimate.high
    interval = "no interval" if low is None or high is None else f"{_nats(low)} to {_nats(high)}"
    return Cell(text=_nats(estimate.value), interval=interval, value=estimate.value, low=low, high=high)


def _nats(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of answering: the field that says whether it was right, and the number that goes with it."""

    title: str
    field: str
    extra_name: str = ""
    extra_unit: str = ""
    extra: Callable[[Sequence[Record]], Cell] | None = None


WAYS = (
    Way(title="Free decoding", field="correct", extra_name="valid chain", extra_unit="%", extra=_valid_chain),
    Way(title="Forced choice", field="forced_correct", extra_name="margin", extra_unit="nats", extra=_margin),
)

WRITTEN_WAYS = (Way(title="Free decoding", field="correct"),)


def ways_of(folder: RunData) -> tuple[Way, ...]:
    """How the items of a run can be answered."""
    return WAYS if has_graphs(folder) else WRITTEN_WAYS


def _set_chart(folder: RunData, name: str, items: Sequence[Record]) -> Chart:
    """One line an arm, free decoding and forced choice; the rules below. The tables beside it hold the same numbers."""
    by_arm, graphs = grouped(items, lambda r: str(r.get("arm"))), has_graphs(folder)
    series: list[Series] = []
    for arm in folder.arms():
        for way in ways_of(folder):
            estimate = share(by_arm.get(arm, []), way.field)
            if estimate is not None and estimate.value is not None:
                series.append(point(arm, arm, estimate, filled=way.field == "correct"))
    series += [point(rule, "", counted(*found[None])) for rule, found in rules_on(folder, name).items()]
    return Chart(
        key=f"accuracy-{name}",
        title=f"Set {name}",
        form="intervals",
        x_title="accuracy, %",
        series=tuple(series),
        rules=((CHANCE, "chance between two options"),) if graphs else (),
        note="Filled: free decoding. Open: forced choice. Grey: rules without reasoning. Bars: 95% intervals."
        if graphs
        else "Free decoding. Bars: 95% intervals.",
    )


def _families_table(folder: RunData, way: Way, sets: Sequence[str], clean: Sequence[Record]) -> Table:
    by = grouped(clean, lambda r: (str(r.get("arm")), str(r.get("set"))))
    counts = {name: common_count([group for key, group in by.items() if key[1] == name]) for name in sets}
    rows = []
    for arm in folder.arms():
        cells = [Cell(text=arm, code=True)]
        for name in sets:
            records = by.get((arm, name), [])
            why = "not evaluated on this set"
            cells.append(share_cell(share(records, way.field), why, count=own_count(records, counts[name])))
        rows.append(Row(cells=tuple(cells), group="arms"))
    rows += _rules_by_set(folder, counts)
    columns = (Column(name="arm"), *(Column(name=name, note=headed(counts[name]), numeric=True) for name in sets))
    return Table(title=f"{way.title}, accuracy in %", columns=columns, rows=tuple(rows))


def _rules_by_set(folder: RunData, counts: Mapping[str, str]) -> list[Row]:
    found = {name: rules_on(folder, name) for name in counts}
    rows = []
    for rule in dict.fromkeys(rule for mine in found.values() for rule in mine):
        cells = (rule_cell(found[name].get(rule, {}).get(None), common) for name, common in counts.items())
        rows.append(Row(cells=(Cell(text=rule), *cells), group="rules"))
    return rows


def _clipped(text: object, limit: int = 120) -> str:
    """Long output of a model is cut, and the cut is shown."""
    shown = " ".join(str("" if text is None else text).split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def first_set(folder: RunData) -> str:
    """The set that a table with room for one set shows: the first evaluated one that is not of another family."""
    names = _sets(_clean(folder))
    inside = [name for name in names if family_of(folder, name) not in OUT_OF_DISTRIBUTION]
    return next(iter([*inside, *names]), "")


def shown_set(folder: RunData, records: Iterable[Record]) -> tuple[str, tuple[str, ...]]:
    """Of the sets that records are about, the one to show (the run's first, where they have it); what is said of it."""
    names = list(dict.fromkeys(str(record.get("set")) for record in records))
    shown = first if (first := first_set(folder)) in names else names[0]
    others = [name for name in names if name != shown]
    said = f"Set {shown} is shown; the records hold {joined(others)} as well."
    return shown, (said,) if others else ()
