"""What recycled content, positions and curriculum each add; what may be concluded comes from the verdicts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stepwell.report.accuracy import first_set
from stepwell.report.cells import (
    MINUS,
    TIMES,
    TO,
    Cell,
    Chart,
    Column,
    Row,
    Section,
    Series,
    Table,
    dash,
    joined,
    percent,
    plural,
    times_100,
)
from stepwell.report.folder import RunData
from stepwell.report.measures import is_clean
from stepwell.report.verdicts import VerdictRow, verdict_rows

MULTIPASS = (
    "There is no arm “multipass”. `shared` and `frozen` put vectors into the latent positions that are known before "
    "the pass begins: no input depends on an output. Under a causal mask each position sees itself and what lies "
    "before it, so computing the positions one after another over a cache, or all of them at once, is the same "
    "function: the same logits and the same gradients, up to rounding. Only `continuous` feeds a state back, and only "
    "it needs one pass for each thought. A difference measured between the two forms is a finding about code or chance "
    "(another order of random numbers, another dropout mask), and never about thinking. A check under Data and audits "
    "compares both forms on the weights of this study."
)
DESIGN = (
    "The arms form a nested design: content can be recycled only into positions, and positions stand where a "
    "curriculum removed the steps. So each factor is the difference of two neighbouring arms, given the factors below "
    "it, and no interaction can be told. Differences are of the same item under the same seed."
)


def factorial_section(data: RunData) -> Section:
    """Main effects on the first test set in points of accuracy, with intervals over items, and over items and seeds."""
    name = first_set(data)
    items = [r for r in data.of_kind("item") if str(r.get("set")) == name and is_clean(r)]
    key, title = "factorial", "What content, positions and curriculum add"
    if not items:
        return Section(key=key, title=title, lines=(MULTIPASS,), missing="No evaluated items.")
    # Imported here: with scipy.stats, which takes a second to load.
    from stepwell.analysis.factorial import main_effects

    effects = main_effects(items)
    columns = (
        Column(name="factor"),
        Column(name="arms"),
        Column(name="these runs", note="points, 95% over items", numeric=True),
        Column(name="the mechanism", note="points, 95% over items and seeds", numeric=True),
        Column(name="p", note="Holm", numeric=True),
        Column(name="n", note=f"items {TIMES} seeds", numeric=True),
    )
    rows = tuple(_row(effect) for effect in effects)
    defined = [effect for effect in effects if effect.runs is not None and effect.runs.value is not None]
    note = "Free decoding. The first interval is about the models at hand, the second about such a training as such."
    return Section(
        key=key,
        title=title,
        lines=(_concluded(data, effects), DESIGN, MULTIPASS),
        charts=(_chart(name, defined, data.arms()),) if defined else (),
        tables=(Table(title=f"Set {name}: main effects", columns=columns, rows=rows, note=note),),
    )


def _row(effect: Any) -> Row:
    contrast = effect.contrast
    arms = Cell(text=f"{contrast.arm} {MINUS} {contrast.without}", why=f"given {contrast.given}", code=True)
    if effect.runs is None:
        blank = tuple(dash(effect.undefined) for _ in range(4))
        return Row(cells=(Cell(text=contrast.factor), arms, *blank))
    claim = effect.claim
    mechanism = dash(claim.reason) if claim.verdict == "undefined" else _points(claim.estimate)
    p = dash(claim.reason) if effect.adjusted is None else Cell(text=_p_text(effect.adjusted))
    n = Cell(text=f"{effect.items:,} {TIMES} {effect.seeds}")
    return Row(cells=(Cell(text=contrast.factor), arms, _points(effect.runs), mechanism, p, n))


def _p_text(p: float) -> str:
    from stepwell.stats import p_text

    return p_text(p)


def _points(estimate: Any) -> Cell:
    if estimate is None or estimate.value is None:
        return dash("undefined")
    value, low, high = map(times_100, (estimate.value, estimate.low, estimate.high))
    if estimate.low is None or estimate.high is None:
        return Cell(text=_signed(estimate.value), interval="no interval", value=value)
    interval = f"{_signed(estimate.low)} {TO} {_signed(estimate.high)}"
    return Cell(text=_signed(estimate.value), interval=interval, value=value, low=low, high=high)


def _signed(share: float) -> str:
    text = percent(abs(share))
    return text if text == "0.0" else f"{'+' if share > 0 else MINUS}{text}"


def _chart(name: str, effects: Iterable[Any], arms: tuple[str, ...]) -> Chart:
    series = []
    for effect in effects:
        for what, estimate, filled in (
            ("these runs", effect.runs, False),
            ("the mechanism", effect.claim.estimate, True),
        ):
            if estimate.low is None or (filled and effect.claim.verdict == "undefined"):
                continue
            label = f"{effect.contrast.arm} {MINUS} {effect.contrast.without}"
            told = f"{label}, {what}: {_signed(estimate.value)} ({_signed(estimate.low)} to {_signed(estimate.high)})"
            series.append(
                Series(
                    label=label,
                    arm=effect.contrast.arm if effect.contrast.arm in arms else "",
                    x=(100 * estimate.value,),
                    low=(100 * estimate.low,),
                    high=(100 * estimate.high,),
                    filled=filled,
                    hover=(told,),
                )
            )
    return Chart(
        key=f"factorial-{name}",
        title=f"Set {name}: difference of neighbouring arms",
        form="intervals",
        x_title="difference, points",
        series=tuple(series),
        rules=((0.0, "no difference"),),
        note="Open: these trained models, 95% over items. Filled: the mechanism, 95% over items and seeds (3 or more).",
        low=-100,
        high=100,
    )


def _concluded(data: RunData, effects: Iterable[Any]) -> str:
    """What may and what may not be concluded: from gates that compare the two arms, and from no figure."""
    may, may_not = [], []
    asked = {row.gate: row for row in verdict_rows(data)}
    for effect in effects:
        contrast = effect.contrast
        rows = [asked[gate] for gate in _gates(data, contrast.arm, contrast.without) if gate in asked]
        decided = [row for row in rows if row.decision in ("go", "no-go") and row.sure]
        for row in decided:
            may.append(_said(row, contrast.factor))
        if not decided:
            why = joined(f"gate `{row.gate}` is {row.decision}" for row in rows) if rows else "no gate asks"
            may_not.append(f"whether {contrast.factor} {_verb(contrast.factor)} anything ({why})")
    text = f"May be concluded of these trained models: {'; '.join(may) or 'nothing'}. "
    text += f"May not: {'; '.join(may_not) + '; ' if may_not else ''}{_mechanism(data)}."
    return text


def _verb(factor: str) -> str:
    return "add" if factor.endswith("s") else "adds"


def _said(row: VerdictRow, factor: str) -> str:
    if row.route == "equivalent":
        return (
            f"with and without {factor} they are equivalent within the margin of gate `{row.gate}`, set before the run"
        )
    side = "yes" if row.decision == "go" else "no, which is no proof that there is no difference"
    return f"{factor}, “{row.asks.strip().rstrip('.')}” (gate `{row.gate}`): {side}"


def _mechanism(data: RunData) -> str:
    """Why nothing is claimed about the mechanism, or which gates claim it."""
    from stepwell.stats import FEWEST_SEEDS

    seeds = {record.get("seed") for record in data.of_kind("item")}
    if len(seeds) < FEWEST_SEEDS:
        trained = "one seed was trained" if len(seeds) == 1 else f"{len(seeds)} seeds were trained"
        return f"anything about the mechanism, for {trained} and that takes {FEWEST_SEEDS}"
    decided = {row.gate for row in verdict_rows(data) if row.decision in ("go", "no-go")}
    claiming = [gate for gate in _claiming(data) if gate in decided]
    if not claiming:
        return "anything about the mechanism, for no gate that claims one has decided"
    about = plural(len(claiming), "gate")
    return (
        f"anything about the mechanism beyond {about} that {'claims' if len(claiming) == 1 else 'claim'} it: "
        + joined(f"`{gate}`" for gate in claiming)
    )


def _gate_specs(data: RunData) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for gate in data.plan.get("gates") or ():
        for criterion in gate.get("criteria") or ():
            yield str(gate.get("name")), criterion


def _claiming(data: RunData) -> list[str]:
    return list(dict.fromkeys(name for name, c in _gate_specs(data) if c.get("claim") == "mechanism"))


def _gates(data: RunData, arm: str, without: str) -> list[str]:
    """Gates with a criterion that takes the difference of just these two arms."""
    found = []
    for name, criterion in _gate_specs(data):
        minus = criterion.get("minus")
        if (
            isinstance(minus, Mapping)
            and minus.get("arm") == without
            and (criterion.get("where") or {}).get("arm") == arm
        ):
            found.append(name)
    return list(dict.fromkeys(found))
