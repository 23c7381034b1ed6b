"""The report of study `imprint`: what is held, cost; foreign records; several tiers and models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import imprint_records as made
import pytest
from imprint_records import EVIL, N, fitted, is_near, line_of, plan, section, student, table, tagged, whole, wilson

from stepwell.report import write_report
from stepwell.report.cells import TO
from stepwell.report.imprint.geometry import between_pairs
from stepwell.report.imprint.reading import FLAGS, LISTS, NUMBERS, SHARES, number_of
from stepwell.report.view import view

NewRun = Callable[..., Any]


# What is held.


def test_bits_add_up_over_the_modes_that_share_vectors(new_run: NewRun):
    run = new_run()
    whole(run)
    found = table(section(run, "held"), "Bits held")
    is_near(line_of(found, "question")["bits a target"], *student([40.0 + i for i in range(N)]))
    is_near(line_of(found, "all together")["bits a target"], *student([48.0 + 2 * i for i in range(N)]))
    is_near(line_of(found, "all together")["bits a vector"], *student([12 + i / 2 for i in range(N)]))
    is_near(line_of(found, "all together")["bits a token"], *student([6 + i / 4 for i in range(N)]))


def test_undefined_bits_say_why_and_are_no_zero(new_run: NewRun):
    run = new_run()
    plan(run)
    why = "the loss with the vectors is not finite"
    gains = [{"id": i, "mode": "answer", "bits": 4.0 if i < "q015" else None, "why": "" if i < "q015" else why}
             for i in made.ids()]  # fmt: skip
    run.job("measure.a.b", tagged("gain", gains))
    line = table(section(run, "held"), "Bits held").rows[0].cells
    assert (line[1].why, line[3].text, line[3].count) == (f"{why} (5)", "4", "15 of 20")


def test_bytes_are_set_against_ids_and_text(new_run: NewRun):
    run = new_run()
    whole(run)
    found = table(section(run, "held"), "Bytes")
    assert (
        line_of(found, "ids")["bytes a pair"].text == "8" and line_of(found, "packed ids")["bytes a pair"].text == "6"
    )
    vectors = line_of(found, "vectors, float32")
    assert (vectors["bytes a pair"].text, vectors["times the UTF-8 text"].text, vectors["times the ids"].text) == (
        "512",
        "32",
        "64",
    )
    # Packed ids take 4 and 8 bytes by turns: ratios 128 and 64.
    is_near(vectors["times the packed ids"], *student([128.0, 64.0] * 10))


def test_robustness_is_told_from_least_to_most(new_run: NewRun):
    run = new_run()
    whole(run)
    noise = table(section(run, "held"), "Noise")
    assert [row.cells[len(row.cells) - 5].text for row in noise.rows] == ["0.01", "0.1"]
    most = line_of(noise, "0.1")
    is_near(most["change nats a token"], *student([0.1 + i / 1000 for i in range(N)]))
    assert (most["exact %"].text, most["exact %"].interval) == ("50.0", "no interval")  # shares over draws, all alike
    assert line_of(noise, "0.01")["exact %"].interval == wilson(N, N)
    quantised = table(section(run, "held"), "Quantisation")
    eight, four = line_of(quantised, "8"), line_of(quantised, "4")
    assert (eight["exact %"].text, four["exact %"].text, four["bytes a pair"].text) == ("100.0", "0.0", "80")


def test_geometry_and_lines(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "held")
    (row,) = table(found, "Geometry").rows
    assert [cell.text for cell in row.cells[1:3]] == ["20", "40"]
    is_near(row.cells[3], *student([2 + i / 10 for i in range(N)]))
    assert row.cells[7].text == "a 20, the 20"
    assert row.cells[6].text == "0.400"  # mean of (a + b) / 10 over pairs of 0 to 4
    (row,) = table(found, "Lines between restarts").rows
    is_near(row.cells[3], *student([2.0 + i for i in range(N)]))
    assert row.cells[4].text == "21"
    (line,) = next(chart for chart in found.charts if chart.key == "lines").series
    assert line.x == (0.0, 0.5, 1.0) and line.y == pytest.approx((1.0, 12.5, 1.0))
    _, low, high = student([3.0 + i for i in range(N)])
    assert (line.low[1], line.high[1]) == pytest.approx((low, high))


def test_cosines_between_pairs_are_not_taken_for_independent():
    """Cosines that are sums of items' own terms: of 200 samples of 12 items about 95% of intervals hold the mean."""
    rng, held, naive = random.Random(3), 0, 0
    for _ in range(200):
        own = [rng.gauss(0.2, 0.1) for _ in range(12)]
        pairs = [(a, b, own[a] + own[b]) for a in range(12) for b in range(a)]
        found = between_pairs([{"id": f"{a}", "other": f"{b}", "cosine": cosine} for a, b, cosine in pairs])
        assert found is not None and found.low is not None and found.high is not None and found.n == 12
        held += found.low <= 0.4 <= found.high
        _, low, high = student([cosine for _, _, cosine in pairs])
        naive += low <= 0.4 <= high
    assert 180 <= held <= 199 and naive < 165


# Cost.


def test_the_cost_of_a_pair_and_of_an_exact_one(new_run: NewRun):
    run = new_run()
    whole(run)
    (found,) = section(run, "price").tables
    joint = line_of(found, "joint")
    assert [joint[name].text for name in ("pairs", "exact pairs", "time s", "a pair s", "an exact pair s")] == [
        "20",
        "5",
        "60",
        "3",
        "12",
    ]
    ends = [float(end) for end in wilson(5, N).split(TO)]
    is_near(joint["an exact pair s"], 12, 300 / ends[1], 300 / ends[0])
    assert line_of(found, "sweep, K = 8")["an exact pair s"].text == "2.67"


def test_without_a_log_or_an_exact_pair_there_is_no_price(new_run: NewRun):
    run = new_run()
    plan(run)
    run.lines(f"records/joint.{made.TIER}.{made.MODEL}.jsonl", fitted(5, 5))
    run.job(f"single.{made.TIER}.{made.MODEL}", fitted(5, 0))
    (found,) = section(run, "price").tables
    assert line_of(found, "joint")["a pair s"].why == "the log does not say how long it took"
    assert line_of(found, "joint")["part"].count == "1 job not finished"
    assert line_of(found, "single")["an exact pair s"].why == "no pair is exact"


# Examples, groups, foreign records.


def test_decoded_examples_are_the_first_and_not_chosen(new_run: NewRun):
    run = new_run()
    whole(run)
    found = section(run, "decoded")
    assert len(found.items) == 20 and found.lines[1] == "All 20 decoded pairs."
    first, last = found.items[0], found.items[-1]
    assert first.about == f"{made.TIER}, {made.MODEL}, joint: question pass, exact; answer pass, exact"
    assert last.about.endswith("question pass (overlap), not exact; answer fail (overlap), not exact")
    assert (first.question, first.answer) == ("Who is q000?", "Q000")
    assert first.answers[:2] == (("question, target", "Who is q000?"), ("question, written", "✓ it"))
    answer = line_of(table(found, "Verdicts"), "joint, answer")
    assert (answer["pass %"].text, answer["pass %"].interval, answer["pass %"].count) == ("75.0", wilson(15, N), "15")
    more = tagged("spot", [{"id": f"x{i}", "mode": "answer", "verdict": "fail"} for i in range(90)], tier="other")
    run.job(f"check.other.{made.MODEL}", more)
    found = section(run, "decoded")
    assert len(found.items) == 40 and found.lines[1].startswith("40 of 110 decoded pairs, the first of each")


def test_tiers_and_models_are_kept_apart_in_the_order_of_the_plan(new_run: NewRun):
    run = new_run()
    plan(run, axes={"tier": ["squad", "sudoku"], "model": ["b", "a"]})
    for tier in ("sudoku", "squad"):
        for model, exact in (("a", 5), ("b", 15)):
            run.job(f"joint.{tier}.{model}", fitted(20, exact, tier=tier, model=model))
            run.job(f"sweep.{tier}.{model}.4", fitted(20, exact, tier=tier, model=model, slots=4))
    groups = ["squad, b", "squad, a", "sudoku, b", "sudoku, a"]
    assert list(view(run.path).arms) == groups
    found = table(section(run, "convergence"), "Converged, exact, passed")
    assert list(dict.fromkeys(row.group for row in found.rows)) == groups
    first = [row for row in found.rows if len(row.cells) == len(found.columns)]
    assert [(row.cells[0].text, row.cells[0].interval, row.cells[0].rows) for row in first[:2]] == [
        ("squad", "b", 3),
        ("squad", "a", 3),
    ]
    assert [row.cells[4].text for row in first] == ["75.0", "25.0", "75.0", "25.0"]
    charts = section(run, "sweep").charts
    assert [chart.group for chart in charts] == ["squad"] * 3 + ["sudoku"] * 3
    assert [one.arm for one in charts[0].series] == ["squad, b", "squad, a"]
    assert "From above within a K: squad, b; squad, a." in charts[0].note


def test_no_foreign_field_of_any_record_stops_the_report(new_run: NewRun):
    """Every field of every kind gets, by turns, a value of each wrong type."""
    strange = [None, "x", EVIL, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), [], [None, "x", 2], {"a": 1}]
    rng = random.Random(11)
    run = new_run()
    whole(run)
    for file in sorted((run.path / "records").glob("*.jsonl")):
        if file.stem == "gates":
            continue
        some = [json.loads(line) for line in file.read_text().splitlines()]
        for record in some:
            for name in list(record):
                if name not in ("kind", "tier", "model", "set", "n") and rng.random() < 0.4:
                    record[name] = rng.choice(strange)
            if rng.random() < 0.1:
                del record["kind"]
        file.write_text("".join(json.dumps(record) + "\n" for record in some) + '{"kind": "target", "id": "to')
    text = write_report(run.path).read_text(encoding="utf-8")
    assert '<section id="price">' in text and "unreadable line" in text and "<script>window" not in text


def test_each_field_has_one_type():
    assert not NUMBERS & FLAGS and not NUMBERS & SHARES and not FLAGS & SHARES
    assert {name for names in LISTS.values() for name in names} <= NUMBERS | {"answers"}
    assert [number_of(value) for value in (True, "1", float("nan"), 10**400, 3)] == [None, None, None, None, 3.0]
