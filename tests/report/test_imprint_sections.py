"""The report of study `imprint`: values against hand counts and scipy, levels, curves, the sweep, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import imprint_records as made
import pytest
from imprint_records import EVIL, N, fitted, is_near, line_of, plan, section, student, table, tagged, whole, wilson

from stepwell.report import write_report
from stepwell.report.cells import DASH
from stepwell.report.imprint.levels import CONVERGED, TO_RANDOM, level, level_cell, lowest
from stepwell.report.imprint.numbers import axis_of, median
from stepwell.report.view import view
from stepwell.stats import Estimate

NewRun = Callable[..., Any]


def estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=20, method="given", confidence=0.95)


# The page.


def test_the_page_shows_this_study_and_not_the_other(new_run: NewRun):
    text = write_report(whole(new_run())).read_text(encoding="utf-8")
    for key in made.CHECKED:
        assert (f'<section id="{key}">' in text) == (key != "missing"), key
    assert '<section id="probes">' not in text and '<section id="accuracy">' not in text
    assert "Converged: the final loss is below the bar" in text and "Who is q003?" in text


def test_the_other_study_keeps_its_sections(new_run: NewRun):
    keys = [found.key for found in view(new_run(items=10).whole(sets=("test",))).sections]
    assert "accuracy" in keys and "browser" in keys and "convergence" not in keys


def test_where_the_plan_is_lost_the_records_say_whose_run_it_is(new_run: NewRun):
    run = new_run()
    run.job(f"joint.{made.TIER}.{made.MODEL}", fitted(20, 5))
    shown = [found.key for found in view(run.path).sections]
    assert "convergence" in shown and "accuracy" not in shown and "missing" in shown


def test_a_run_without_a_record_says_of_each_section_that_it_is_empty(new_run: NewRun):
    run = new_run()
    plan(run)
    found = view(run.path).sections
    assert [one.key for one in found] == made.CHECKED
    ours = [one for one in found if one.key in made.CHECKED[2:11]]
    assert len(ours) == 9 and all(one.missing and not one.tables and not one.charts for one in ours)
    assert "Nothing was decoded." in write_report(run.path).read_text(encoding="utf-8")


# Convergence and exactness.


def test_convergence_and_exactness_are_counted_apart(new_run: NewRun):
    run = new_run()
    whole(run)
    found = table(section(run, "convergence"), "Converged, exact, passed")
    names = [row.cells[len(row.cells) - 6].text for row in found.rows]
    assert names == ["single, question", "single, answer", "joint", "joint, question", "joint, answer"]
    single = line_of(found, "single, question")
    assert (single["n pairs"].text, single["n pairs"].count) == ("20", "")
    assert (single["converged %"].text, single["converged %"].interval) == ("90.0", wilson(18, N))
    assert (single["exact %"].text, single["exact %"].interval) == ("50.0", wilson(10, N))
    assert single["passed % of all"].why == "the spot check is of stage joint"
    losses = [1 + i / 100 for i in range(N)]
    found = table(section(run, "convergence"), "Loss")
    single = line_of(found, "single, question")
    is_near(single["loss nats a token"], *student(losses))
    is_near(single["to random ratio"], *student([loss / 10 for loss in losses]))
    assert single["to baseline ratio"].text == DASH
    assert "no baseline in this mode" in single["to baseline ratio"].why
    is_near(line_of(found, "single, answer")["to baseline ratio"], *student([loss / 2 for loss in losses]))


def test_a_pair_passes_the_spot_check_in_every_mode_or_not(new_run: NewRun):
    run = new_run()
    whole(run)
    found = table(section(run, "convergence"), "Converged, exact, passed")
    joint, question = line_of(found, "joint"), line_of(found, "joint, question")
    assert (joint["passed % of all"].text, joint["passed % of all"].interval) == (
        "75.0",
        wilson(15, N),
    )
    among = joint["passed % of converged"]
    assert (among.text, among.interval, among.count) == ("100.0", wilson(10, 10), "n 10")
    assert question["passed % of all"].text == "100.0"


def test_a_pair_without_a_loss_is_told_and_leaves_no_level(new_run: NewRun):
    run = new_run()
    whole(run)
    told = section(run, "convergence")
    joint = line_of(table(told, "Loss"), "joint, answer")
    assert joint["loss nats a token"].count == "19 of 20"
    is_near(joint["loss nats a token"], *student([1 + i / 100 for i in range(N - 1)]))
    levels = line_of(table(told, "Levels reached"), "joint, answer")
    assert levels["loss to random"].text == DASH
    assert levels["loss to random"].why == "1 of 20 have none, and a mean over the rest would flatter"
    assert (levels["converged"].text, levels["converged"].interval) == ("good", "excellent not excluded")
    assert (levels["level the lowest of these"].text, levels["level the lowest of these"].count) == (
        "good",
        "on 1 of 3 criteria",
    )


def test_pairs_that_were_never_fitted_stay_in_the_denominator_said(new_run: NewRun):
    run = new_run()
    plan(run)
    made.data(run)
    some = [record for record in fitted(20, 5) if record.get("id", "q000") < "q012"]
    run.job(f"joint.{made.TIER}.{made.MODEL}", some)
    joint = line_of(table(section(run, "convergence"), "Converged, exact, passed"), "joint")
    assert (joint["n pairs"].text, joint["n pairs"].count) == ("12", "of 20")


def test_levels_of_a_whole_part(new_run: NewRun):
    run = new_run()
    whole(run)
    found = line_of(table(section(run, "convergence"), "Levels reached"), "single, answer")
    assert [found[name].text for name in ("converged", "loss to random", "loss to baseline")] == [
        "minimum",  # Wilson's interval of 18 of 20 begins at 69.9%, below the 70% of "good"
        "excellent",
        "excellent",
    ]
    assert found["converged"].interval == "excellent not excluded"
    assert found["level the lowest of these"].text == "minimum"


@pytest.mark.parametrize(
    ("low", "high", "text", "rest", "tone"),
    [
        (0.71, 0.89, "good", "", "go"),
        (0.71, 0.95, "good", "excellent not excluded", "go"),
        (0.70, 0.80, "minimum", "good not excluded", "go"),
        (0.39, 0.60, "open", "minimum not excluded", "inconclusive"),
        (0.10, 0.40, "below minimum", "", "no-go"),
        (0.91, 0.99, "excellent", "", "go"),
    ],
)
def test_a_level_is_reached_when_the_whole_interval_is_beyond_it(
    low: float, high: float, text: str, rest: str, tone: str
):
    cell = level_cell(level(estimate((low + high) / 2, low, high), CONVERGED, above=True))
    assert (cell.text, cell.interval, cell.tone) == (text, rest, tone)
    turned = [1 - bar for bar in CONVERGED]
    below = level_cell(level(estimate(1 - (low + high) / 2, 1 - high, 1 - low), tuple(turned), above=False))
    assert (below.text, below.interval) == (text, rest)


def test_no_interval_reaches_no_level():
    assert level(None, TO_RANDOM, above=False).reached is None
    found = level(estimate(0.01, None, None), TO_RANDOM, above=False)
    assert level_cell(found).why == "no interval: too few values, or all the same"
    assert lowest([found, level(estimate(0.2, 0.19, 0.21), TO_RANDOM, above=False)]).reached == 2


# The sweep.


def test_the_sweep_against_hand_counts(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "sweep")
    eight = line_of(table(found, "Each K"), "8")
    assert (eight["exact %"].text, eight["exact %"].interval) == ("75.0", wilson(15, N))
    # Two modes of 4 tokens, 6 nats without and 1 + i / 100 with c, over 8 vectors.
    is_near(eight["bits a vector"], *student([2 * 4 * (5 - i / 100) / math.log(2) / 8 for i in range(N)]))
    # Exact at 10 to 24; five never were. The 10th of 20 is 19; order statistics 6 and 15: 15 and 24.
    steps = eight["steps half of the pairs exact"]
    assert (steps.text, steps.interval) == ("19", "15 to 24")
    four = line_of(table(found, "Each K"), "4")["steps half of the pairs exact"]
    assert (four.text, four.why) == (DASH, "fewer than half of the pairs became exact")
    assert [chart.key.split("-")[1] for chart in found.charts] == ["exact", "bits", "steps"]
    exact, bits, steps_chart = found.charts
    assert [one.label for one in exact.series] == ["K = 4", "K = 8"] and exact.series[1].x == (75.0,)
    assert [one.label for one in steps_chart.series] == ["K = 8"]
    assert bits.low == 0.0 and bits.high is not None and bits.high >= max(one.high[0] or 0 for one in bits.series)


def test_the_smallest_k_of_each_pair(new_run: NewRun):
    run = new_run()
    whole(run)
    found = table(section(run, "sweep"), "The smallest K that is exact")
    four, eight, none = line_of(found, "4"), line_of(found, "8"), line_of(found, "none")
    assert [line["pairs"].text for line in (four, eight, none)] == ["5", "14", "1"]
    assert (eight["share %"].text, eight["with at most so many %"].text) == ("70.0", "95.0")
    assert eight["with at most so many %"].interval == wilson(19, N)
    assert none["smallest K"].why == "not even 8 slots do"


@pytest.mark.parametrize(("n", "places"), [(5, None), (6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33))])
def test_the_median_has_the_interval_of_the_sign_test(n: int, places: tuple[int, int] | None):
    """The places are those of published tables for 95% (Hollander & Wolfe, table A.2)."""
    found = median([float(i) for i in range(n, 0, -1)])
    assert found is not None and found.value == math.ceil(n / 2)
    assert (found.low, found.high) == (places or (None, None))


def test_what_was_never_reached_stands_above_all_numbers():
    found = median([1.0, 2.0, 3.0, 4.0, math.inf, math.inf, math.inf])
    assert found is not None and (found.value, found.low, found.high) == (4.0, 1.0, math.inf)
    assert median([]) is None


def test_an_axis_ends_at_a_round_number():
    run = [made_point(-3.0, -3.4, -2.0), made_point(7.2, 7.0, 7.9)]
    assert axis_of(run) == (-4.0, 12.0)
    assert axis_of([made_point(0.03, 0.02, 0.04)]) == (0.0, 0.04)
    assert axis_of([]) == (0.0, 1.0)


def made_point(value: float, low: float, high: float) -> Any:
    from stepwell.report.imprint.numbers import value_point

    return value_point("K = 4", "a", estimate(value, low, high))


# Curves.


def test_health_classes_are_counted_and_a_few_drawn_on_one_scale(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "curves")
    line = line_of(table(found, "Curves of each class"), "single, question")
    assert [line[f"{name} %"].count for name in ("monotone", "plateau then drop", "zero", "flat")] == [
        "12",
        "5",
        "3",
        "0",
    ]
    assert (line["monotone %"].text, line["monotone %"].interval) == ("60.0", wilson(12, N))
    swept = line_of(table(found, "Curves of each class"), "sweep, question")
    assert (swept["n curves"].text, swept["monotone %"].text) == ("40", "60.0")
    assert swept["monotone %"].interval != wilson(24, 40)  # two curves of one pair are no two pairs
    assert [chart.title for chart in found.charts] == ["monotone", "plateau then drop", "zero"]
    assert all(chart.log and (chart.low, chart.high) == (1e-6, 4.0) for chart in found.charts)
    zero = found.charts[2]
    assert len(zero.series) == 4 and zero.series[0].y == (4.0, 0.5, 1e-6) and "drawn there" in zero.note
    stages = {one.label.split(", ")[1] for one in zero.series}
    assert stages == {"single", "joint", "sweep"}
    assert zero.table is not None and zero.table.rows[0].cells[-1].text == "it falls at every point"


def test_a_long_curve_is_thinned_and_keeps_its_ends(new_run: NewRun):
    run = new_run()
    plan(run)
    at = {"id": "q000", "mode": "answer", "restart": 0}
    curve = {**at, "steps": list(range(5001)), "nats": [5001.0 - i for i in range(5001)]}
    records = tagged("target", [{**at, "converged": True, "exact": True, "nats": 1.0, "health": "monotone"}])
    run.job(f"joint.{made.TIER}.{made.MODEL}", records + tagged("curve", [curve]))
    (line,) = section(run, "curves").charts[0].series
    assert len(line.x) <= 241 and (line.x[0], line.x[-1], line.y[-1]) == (0.0, 5000.0, 1.0)


# Hostile and foreign records.


def test_texts_from_models_and_data_are_inert(new_run: NewRun):
    run = new_run()
    whole(run)
    made.check(run, written=EVIL)
    at = {"tier": EVIL, "model": EVIL, "id": EVIL, "mode": EVIL}
    run.lines("records/joint.evil.evil.jsonl", [
        {"kind": "target", **at, "restart": 0, "health": EVIL, "end": EVIL, "nats": 1.0, "exact": True},
        {"kind": "curve", **at, "restart": 0, "steps": [0, 1], "nats": [1.0, 0.5]},
        {"kind": "pair", **at, "exact": True, "converged": True, "gradient_cosine": 0.5},
        {"kind": "smallest", **at, "slots": None, "why": EVIL},
        {"kind": "spot", **at, "target": EVIL, "written": EVIL, "verdict": EVIL, "how": EVIL},
        {"kind": "geometry", **at, "nearest": EVIL, "distance": 1.0},
        {"kind": "baseline", **at, "why": EVIL}, {"kind": "model", **at, "name": EVIL, "fallback": True, "why": EVIL},
        {"kind": "alert", **at, "monitor": EVIL, "message": EVIL, "stopped": EVIL},
    ])  # fmt: skip
    text = write_report(run.path).read_text(encoding="utf-8")
    assert "<script>window" not in text and "<img" not in text and "window.owned" in text
