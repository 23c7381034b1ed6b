"""The section on interventions: numbers recomputed by hand, n that count only who was asked, vacuous ones marked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.report import draw
from stepwell.report.cells import DASH, TIMES, Cell, Section, Table
from stepwell.report.interventions import interventions_section
from stepwell.report.view import read_folder, view
from stepwell.stats import wilson

NewRun = Callable[..., Any]


def section(folder: Path) -> Section:
    return interventions_section(read_folder(folder))


def line(table: Table, arm: str) -> tuple[Cell, ...]:
    return next(row.cells for row in table.rows if row.cells[0].text == arm)


def record(item: int, condition: str = "clean", **fields: Any) -> dict[str, Any]:
    usual = {"k": None, "position": None, "scale": None, "propagates": None, "donor": None, "latents": 3}
    found = {"correct": True, "forced_correct": True, "margin": 1.0, "flipped": False, "answer_changed": False}
    place = {"kind": "intervention", "arm": "continuous", "seed": 0, "set": "test", "id": f"i{item}", "hops": 3}
    family = condition.partition(" ")[0]
    return {**place, **usual, "family": family, "condition": condition, **found, "vacuous": False, **fields}


def noise(item: int, k: int, **fields: Any) -> dict[str, Any]:
    return record(item, f"noise-first k={k} x1 propagating", k=k, scale=1.0, propagates=True, **fields)


def run_of(new_run: NewRun, records: list[dict[str, Any]]) -> Section:
    run = new_run()
    run.plan()
    run.job("intervene.continuous.0", records)
    return section(run.path)


def test_no_interventions_are_said_to_be_missing(new_run: NewRun):
    run = new_run()
    run.plan()
    assert section(run.path).missing == "No intervention was evaluated in this run."


def test_a_whole_run_shows_tables_curves_and_what_is_vacuous(new_run: NewRun):
    found = section(new_run().whole())
    accuracy, flips = found.tables
    assert accuracy.title == "Set test: free decoding, accuracy in %"
    assert [column.name for column in accuracy.columns] == ["arm", "clean", "zeroed", "averaged", "between"]
    assert [column.name for column in flips.columns] == ["arm", "zeroed", "averaged", "between"]
    assert all(cell.text == DASH and cell.why == "this arm has no thoughts" for cell in line(accuracy, "cot")[1:])
    assert all(cell.interval and not cell.why for cell in line(accuracy, "continuous")[1:])
    for table in (accuracy, flips):
        cells = dict(zip([column.name for column in table.columns], line(table, "shared"), strict=True))
        assert cells["averaged"].why == cells["between"].why == "vacuous" and cells["zeroed"].why == ""
        assert cells["averaged"].tone == "muted"
    assert line(flips, "shared")[2].text == "0.0"
    points, *curves = found.charts
    assert {s.label for s in points.series if s.arm == "shared"} == {
        "shared, clean", "shared, zeroed", "shared, averaged (vacuous)", "shared, between (vacuous)"
    }  # fmt: skip
    assert [chart.title for chart in curves] == [
        "Noise on the first k thoughts, propagating", "Noise on the first k thoughts, afterwards"
    ]  # fmt: skip
    group = f"Set test, noise of 1 {TIMES} the thoughts' own standard deviation: free decoding, accuracy in %"
    assert all(chart.group == group for chart in curves)
    text = " ".join(found.lines)
    assert "between: the thoughts of another item" in text and "Vacuous: all vectors of an item" in text
    assert "Each n counts the items that have that many thoughts" in text
    assert section(new_run("again").whole()) == found
    assert [s.key for s in view(new_run("third").whole()).sections].count("interventions") == 1


def test_a_curve_counts_only_the_items_that_have_so_many_thoughts(new_run: NewRun):
    """The earlier study divided by all items, and reported a cliff that was not there."""
    records = [record(i) for i in range(20)]
    for k, n in ((1, 20), (2, 20), (3, 5)):
        records += [noise(i, k, correct=i % 5 != 0) for i in range(n)]
    (_, curve) = run_of(new_run, records).charts
    (series,) = curve.series
    assert series.x == (0.0, 1.0, 2.0, 3.0)
    assert series.y == pytest.approx((100.0, 80.0, 80.0, 80.0)), "no cliff"
    assert series.hover[-1].endswith("n 5") and series.hover[1].endswith("n 20")
    for x, right, n in ((1, 16, 20), (3, 4, 5)):
        wanted = wilson(right, n, 0.95)
        assert wanted.low is not None and wanted.high is not None
        assert (series.low[x], series.high[x]) == pytest.approx((100 * wanted.low, 100 * wanted.high))
    assert curve.table is not None
    assert [cell.count for cell in line(curve.table, "continuous")[1:]] == ["n 20", "n 20", "n 20", "n 5"]
    drawn = draw.figure(curve, ("continuous",))["data"][0]
    assert drawn["mode"] == "lines+markers"
    assert drawn["y"][3] - drawn["error_y"]["arrayminus"][3] == pytest.approx(series.low[3])
    assert drawn["y"][3] + drawn["error_y"]["array"][3] == pytest.approx(series.high[3])


def test_numbers_of_thoughts_stand_in_their_order_with_the_trained_one_among_them(new_run: NewRun):
    records = [record(i, correct=i < 9) for i in range(10)]
    for count, right in ((0, 4), (2, 6), (5, 8)):
        records += [record(i, f"thoughts {count}", latents=count, correct=i < right) for i in range(10)]
    (_, curve) = run_of(new_run, records).charts
    assert (curve.title, curve.x_title) == ("Another number of thoughts", "thoughts")
    assert curve.group == "Set test: free decoding, accuracy in %"
    assert (curve.series[0].x, curve.series[0].y) == ((0.0, 2.0, 3.0, 5.0), pytest.approx((40.0, 60.0, 90.0, 80.0)))


def test_a_single_position_has_no_clean_point_and_each_scale_its_own_charts(new_run: NewRun):
    records = [record(i) for i in range(4)]
    for scale in (2.0, 0.5):
        for put_in in (True, False):
            for position in (2, 1):
                name = f"noise-single position={position} x{scale:g} {put_in}"
                more = {"k": 1, "position": position, "scale": scale, "propagates": put_in}
                records += [record(i, name, **more, correct=scale < 1) for i in range(4)]
    curves = run_of(new_run, records).charts[1:]
    assert [(chart.title, chart.series[0].y[0]) for chart in curves] == [
        ("Noise on one thought, propagating", 100.0), ("Noise on one thought, afterwards", 100.0),
        ("Noise on one thought, propagating", 0.0), ("Noise on one thought, afterwards", 0.0),
    ]  # fmt: skip
    assert all(chart.series[0].x == (1.0, 2.0) for chart in curves)
    assert len({chart.key for chart in curves}) == 4


def test_without_decoding_the_forced_choice_is_shown_and_named(new_run: NewRun):
    records = [record(i, correct=None) for i in range(6)]
    records += [record(i, "zeroed", k=3, correct=None, forced_correct=i < 2, flipped=i >= 2) for i in range(6)]
    found = run_of(new_run, records)
    accuracy, flips = found.tables
    assert accuracy.title == "Set test: forced choice, accuracy in %"
    assert [cell.text for cell in line(accuracy, "continuous")[1:]] == ["100.0", "33.3"]
    assert [cell.text for cell in line(flips, "continuous")[1:]] == ["66.7"]
    assert "Forced choice" in found.charts[0].note


def test_an_edit_that_is_vacuous_for_some_items_says_for_how_many(new_run: NewRun):
    records = [record(i) for i in range(6)] + [record(i, "order", k=3, vacuous=i < 2) for i in range(6)]
    cell = line(run_of(new_run, records).tables[0], "continuous")[2]
    assert cell.why == "vacuous for 2 of 6"


def test_many_conditions_are_split_into_tables_that_fit(new_run: NewRun):
    records = [record(i, c) for c in ["clean", *(f"swap position={p}" for p in range(1, 9))] for i in range(3)]
    accuracy = [table for table in run_of(new_run, records).tables if "accuracy" in table.title]
    assert [[c.name for c in table.columns[1:3]] for table in accuracy] == [
        ["clean", "swap position=1"], ["clean", "swap position=6"]
    ]  # fmt: skip
