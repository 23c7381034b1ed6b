"""The report of study `imprint`: baselines, controls, conflicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import imprint_records as made
import pytest
from imprint_records import N, is_near, line_of, plan, section, student, table, tagged, whole, wilson
from scipy.stats import t

from stepwell.report.cells import DASH, MINUS, TO

NewRun = Callable[..., Any]


# Baselines.


def test_baselines_are_means_with_intervals_and_say_what_is_undefined(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "baselines")
    means = table(found, "Mean loss before any fit, with 95% intervals over pairs")
    random, full = line_of(means, "random vectors"), line_of(means, "full context")
    is_near(random["answer"], *student([10 + i / 10 for i in range(N)]))
    assert (full["answer"].text, full["answer"].interval) == ("2", "no interval")
    assert (full["question"].text, line_of(means, "n")["question"].text) == (DASH, "20")
    assert full["question"].why == "full context is the question before its answer"
    lacking = line_of(table(found, "Undefined baselines"), "question", "full context")
    assert (lacking["pairs"].text, lacking["why it is undefined"].text) == (
        "20",
        full["question"].why,
    )
    assert table(found, "Models").rows[0].cells[1].text == made.MODEL and not any(
        "knows no language" in x for x in found.lines
    )


def test_a_model_of_random_weights_is_named_as_one(new_run: NewRun):
    run = new_run()
    plan(run)
    about = {"name": "gone/lm", "fallback": True, "why": "the hub does not answer"}
    run.job(f"model.{made.MODEL}", tagged("model", [about]))
    found = section(run, "baselines")
    assert found.lines[0].startswith("`gone/lm` could not be had: a model of random weights stood in for it")
    cell = table(found, "Models").rows[0].cells[1]
    assert (cell.text, cell.why, cell.tone) == ("random weights", "the hub does not answer", "alert")


# Controls.


def test_controls_are_compared_on_the_same_pairs(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "controls")
    loss = line_of(table(found, "Loss after another c"), "answer")
    is_near(loss["own nats a token"], *student([1 + i / 100 for i in range(N)]))
    is_near(loss[f"own {MINUS} random nats a token"], *student([i / 100 - 8 for i in range(N)]))
    is_near(loss[f"own {MINUS} shuffled nats a token"], *student([i / 100 - 7 for i in range(N)]))
    exact = line_of(table(found, "Exact after another c"), "answer")
    assert (exact["own %"].text, exact["own %"].interval) == ("50.0", wilson(10, N))
    assert (exact["random %"].text, exact["random %"].interval) == ("0.0", wilson(0, N))
    assert exact[f"own {MINUS} random points"].text == "50"
    # Newcombe's method 10 for 10 pairs of (1, 0) and 10 of (0, 0): no correlation, so root(l1, u2) and root(u1, l2).
    ends = [float(x) for x in exact[f"own {MINUS} random points"].interval.split(" to ")]
    assert ends == pytest.approx([50 - 100 * math.hypot(0.5 - 0.2993, 0.1611), 70.07], abs=0.1)


def test_capability_has_intervals_over_questions_and_pairs(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "controls")
    accuracy = line_of(table(found, "Capability: accuracy on held-out questions"), "6")
    assert (accuracy["without c %"].text, accuracy["without c %"].interval) == ("66.7", wilson(4, 6))
    assert accuracy["own c %"].text == "41.7"  # 2 of 6 and 3 of 6
    assert accuracy["own c %"].interval.startswith(f"0.0{TO}")  # Student's would begin below zero
    assert accuracy[f"own {MINUS} without points"].text == f"{MINUS}25"
    assert accuracy[f"random {MINUS} without points"].text == "0"
    loss = line_of(table(found, "Capability: loss on held-out questions"), "6")
    assert loss["own c nats a token"].text == "6.75"  # mean of 5.5 and 8
    # own - without: 1 for the first c, 1 + question for the second; crossed as Cameron, Gelbach and Miller have it.
    seen = [[1.0, 1.0 + q] for q in range(6)]
    mean = sum(map(sum, seen)) / 12
    assert loss[f"own {MINUS} without nats a token"].text == f"{mean:.2f}" == "2.25"
    rows = 2 * sum((sum(r) / 2 - mean) ** 2 for r in seen) / 5
    columns = 6 * sum((sum(r[c] for r in seen) / 6 - mean) ** 2 for c in (0, 1)) / 1
    rest = sum(
        (r[c] - sum(r) / 2 - sum(x[c] for x in seen) / 6 + mean) ** 2 for r in seen for c in (0, 1)
    ) / 5  # fmt: skip
    total = max(rows + columns - rest, rows, columns)
    freedom = max(total**2 / (rows**2 / 5 + columns**2 + rest**2 / 5), 1)
    half = float(t.ppf(0.975, freedom)) * math.sqrt(total / 12)
    is_near(loss[f"own {MINUS} without nats a token"], mean, mean - half, mean + half)


# Conflicts, leaks, stops.


def test_conflicts_leaks_and_stops_are_told(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "conflicts")
    joint = line_of(table(found, "Between the modes of a pair"), "joint")
    is_near(joint["gradient cosine mean"], *student([0.1 + i / 100 for i in range(N)]))
    assert joint["opposed share of steps"].text == "0.250"
    is_near(joint["loss correlation mean"], *student([-0.5 + i / 10 for i in range(N)]))
    checks = table(found, "Checks that each fit made of itself")
    assert [len(row.cells) for row in checks.rows] == [6, *(5 for _ in range(7))]
    leak = line_of(checks, "joint", "leak")
    assert (leak["found"].text, leak["found"].interval) == ("15.0", f"7.0{TO}29.0")
    assert (leak["alarm"].text, leak["alarm"].tone) == ("alarm", "alert")
    assert line_of(checks, "sweep, K = 8", "conflict")["alarm"].text == "none"
    alert = line_of(table(found, "Alerts of the fits"), "single", "abandon")
    assert (alert["at"].text, alert["message"].text, alert["gave up"].text) == ("50", "fewer than 20% converge", "yes")
    told = line_of(table(found, "Alerts of the fits"), "joint", "conflict")
    assert (told["at"].text, told["message"].text, told["gave up"].text) == ("12", "the losses move apart", "no")
    shared = section(run, "alerts").tables[0]
    assert [column.name for column in shared.columns] == ["stage", "tier", "model", "monitor", "step", "message"]


def test_capability_that_is_nowhere_left_has_an_interval_all_the_same(new_run: NewRun):
    run = new_run()
    plan(run)
    wrong = {"nats": 2.0, "correct": False}
    rows = [{"id": f"h{q}", "pair": f"q{p}", "condition": "own", **wrong} for q in range(4) for p in range(3)]
    run.job(f"controls.{made.TIER}.{made.MODEL}", tagged("capability", rows))
    cell = line_of(table(section(run, "controls"), "Capability: accuracy on held-out questions"), "4")["own c %"]
    assert (cell.text, cell.interval) == ("0.0", wilson(0, 3))
