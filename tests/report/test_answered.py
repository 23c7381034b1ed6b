"""The report of study `squeeze`: values against hand counts and scipy, what is missing or torn, and one drawn page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imprint_records import EVIL, section, student, table, wilson
from scipy.optimize import brentq
from scipy.stats import ttest_1samp

from stepwell.report import write_report
from stepwell.report.answered import answered_sections, browsed_section
from stepwell.report.answered.relative import relative
from stepwell.report.cells import DASH, MINUS, Cell, Table
from stepwell.report.folder import read_folder
from stepwell.report.view import view

NewRun = Callable[..., Any]
N, OURS = 20, ("contract", "answers", "reconstruction", "training", "browser")
F1 = {
    "text": [1.0, 0.5] * 10,
    "ceiling": [1.0, 0.5] * 10,
    "residual": [0.75, 0.5] * 10,
    "residual-8bit": [0.75, 0.25] * 10,
    "random": [0.0] * 20,
}
MODES = ["", "empty", "repetition", "too long", "wrong"] * 4
SIZE = {"residual": 4000, "residual-8bit": 1000, "random": 4000}


def plan(run: Any, seeds: tuple[int, ...] = (0,)) -> None:
    per = {"arm": "arm", "dims": "dims", "seed": "seed"}
    stages: list[dict[str, Any]] = [
        {"name": "data", "kind": "qa.data"},
        {"name": "model", "kind": "qa.model", "needs": ["data"]},
        {"name": "text", "kind": "qa.text", "needs": ["data", "model"]},
        {"name": "restore", "kind": "squeeze.restore", "each": per},
        {"name": "answer", "kind": "squeeze.answer", "each": per},
        {"name": "refine", "kind": "squeeze.refine", "each": {**per, "arm": ["residual"]}, "on": "phase2"},
    ]
    axes = {"arm": ["residual", "random"], "dims": [8], "seed": list(seeds)}
    run.plan(study="squeeze", title="Squeezed", axes=axes, stages=stages, gates=[])


def item(place: int, condition: str, f1: float, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "item", "set": "test", "id": f"q{place:03d}", "condition": condition, "question": f"Who is {place}?",
        "answers": [f"Ada {place}", "Ada"], "prediction": f"{condition} says {place}", "em": f1 == 1.0, "f1": f1,
        "first_token": 3, "first_top1": place < 5, "first_top5": place < 15, "nll_per_token": 1 + place / 100,
        "nll_tokens": 2, "tokens": 4, "distinct": 4, "stopped": True, "error_mode": MODES[place], "bytes": 200,
        "columns": 90, **fields,
    }  # fmt: skip


def asked(arm: str, condition: str, seed: int = 0) -> list[dict[str, Any]]:
    axes = {"arm": arm, "dims": 8, "seed": seed}
    more = {**axes, "bits": 8 if condition.endswith("bit") else 32, "bytes": SIZE[condition], "text_bytes": 200}
    return [item(i, condition, f1, ceiling_f1=F1["ceiling"][i], **more) for i, f1 in enumerate(F1[condition])]


def trained(arm: str, seed: int = 0, steps: int = 40) -> list[dict[str, Any]]:
    axes = {"arm": arm, "dims": 8, "seed": seed}
    found: list[dict[str, Any]] = [
        {"kind": "compressor", **axes, "subspace": "pca", "width": 32, "explained": 0.91, "corpus_tokens": 7958,
         "distinct": 678}
    ]  # fmt: skip
    if arm == "residual":
        found += [
            {"kind": "step", **axes, "step": i, "lr": 1e-3, "grad_norm": 1.0, "tokens": 32, "skipped": False,
             "loss": 1 / i, "loss_mse": 1 / i, "loss_cosine": None, "loss_next_token": 3.0}
            for i in range(1, steps + 1)
        ]  # fmt: skip
        found += [{"kind": "look", **axes, "step": i, "n": 8, "f1": i / 100, "em": 0.0} for i in (20, 40)]
    for name in ("held", "test"):
        near = {"mse": 0.001 * (1 + seed), "cosine": 0.95, "relative_error": 0.2, "norm_ratio": 0.94}
        found.append({"kind": "reconstruction", **axes, "set": name, "tokens": 1045, **near})
    return found


def model() -> list[dict[str, Any]]:
    shown = "text:   <s>{context} | Answer: | {answer}</s>\nlatent: <s> | {M vectors} | Answer:\nat most 9 tokens"
    return [
        {"kind": "contract", "fingerprint": "ab" * 32, "shown": shown, "model": "tiny", "precision": "fp32",
         "parameters": 1000},
        {"kind": "coverage", "set": "test", "n": N, "contexts_cut": 5, "answers_lost": 2, "answers_cut": 0},
    ]  # fmt: skip


def whole(run: Any, seeds: tuple[int, ...] = (0,)) -> Path:
    plan(run, seeds)
    run.job("model", model(), seconds=1)
    run.job("text", [item(i, name, f1) for name in ("text", "ceiling") for i, f1 in enumerate(F1[name])], seconds=2)
    run.event("answered", job="text", condition="text", n=N, seconds=4.0)
    for seed in seeds:
        for arm in ("residual", "random"):
            run.job(f"restore.{arm}.8.{seed}", trained(arm, seed), seconds=3)
            names = [name for name in F1 if name.startswith(arm)]
            run.job(f"answer.{arm}.8.{seed}", [row for name in names for row in asked(arm, name, seed)], seconds=2)
            run.event("answered", job=f"answer.{arm}.8.{seed}", condition=arm, n=N, seconds=10.0 + 2 * seed)
    return run.path


def line(found: Table, name: str) -> dict[str, Cell]:
    """The cells of a line by the names of their columns."""
    (row,) = [row for row in found.rows if row.cells[0].text == name]
    return dict(zip([column.name for column in found.columns[1:]], row.cells[1:], strict=True))


# Ratios of means.


def by_inversion(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Where the t-test of x - r y turns: Fieller's definition, searched."""

    def refuted(r: float) -> float:
        found: Any = ttest_1samp(x - r * y, 0)
        return float(found.pvalue) - 0.05

    middle = x.mean() / y.mean()
    return brentq(refuted, middle - 5, middle, xtol=1e-13), brentq(refuted, middle, middle + 5, xtol=1e-13)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("seed", range(5))
def test_a_ratio_has_fiellers_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.uniform(0.2, 1.0, 25)
    x = y * rng.uniform(0.3, 1.0, 25)
    found = relative({i: v for i, v in enumerate(x)}, {i: v for i, v in enumerate(y)} | {"other": 9.0})
    assert found is not None and found.n == 25
    assert found.value == pytest.approx(x.mean() / y.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(by_inversion(x, y), rel=1e-8)


def test_a_ratio_that_has_no_bound_or_no_value_says_so() -> None:
    rare = {i: float(i == 0) for i in range(10)}
    unbounded = relative(rare, rare)
    assert unbounded is not None and (unbounded.value, unbounded.low, unbounded.high) == (1.0, None, None)
    few = relative({0: 1.0, 1: 0.5}, {0: 1.0, 1: 1.0})
    assert few is not None and (few.value, few.low) == (0.75, None)
    assert relative({0: 1.0}, {0: 0.0}) is None and relative({}, {0: 1.0}) is None
    same = relative({i: 0.5 for i in range(9)}, {i: 1.0 for i in range(9)})
    assert same is not None and (same.low, same.high) == pytest.approx((0.5, 0.5))


# The page.


def test_the_page_shows_this_study(new_run: NewRun) -> None:
    text = write_report(whole(new_run())).read_text(encoding="utf-8")
    for key in OURS:
        assert f'<section id="{key}">' in text
    for key in ("accuracy", "probes", "convergence"):
        assert f'<section id="{key}">' not in text
    assert "Ada 3; Ada" in text and "residual says 3" in text and "ceiling 75.0" in text


def test_scores_are_those_counted_by_hand(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = table(section(run, "answers"), "Answers, with 95% intervals over items")
    assert [row.cells[0].text for row in found.rows] == ["text", "ceiling", "residual", "residual-8bit", "random"]
    assert found.rows[2].cells[0].interval == "dims 8"
    for name, values in F1.items():
        cells, (value, low, high) = line(found, name), student(values)
        assert cells["F1"].text == f"{100 * value:.1f}"
        if high > low:
            assert cells["F1"].interval == f"{100 * low:.1f}\u2013{100 * high:.1f}"
        right = sum(value == 1 for value in values)
        assert (cells["exact match"].text, cells["exact match"].interval) == (f"{5 * right:.1f}", wilson(right, N))
    assert line(found, "ceiling")["F1 to ceiling"].text == "the scale"
    residual = line(found, "residual")
    assert residual["F1 to ceiling"].text == "83.3"
    low, high = by_inversion(np.array(F1["residual"]), np.array(F1["ceiling"]))
    assert [float(end) for end in residual["F1 to ceiling"].interval.split(" to ")] == pytest.approx(
        [100 * low, 100 * high], rel=6e-3
    )
    value, low, high = student([a - b for a, b in zip(F1["residual"], F1["ceiling"], strict=True)])
    assert residual["F1 minus ceiling"].text == f"{MINUS}12.5" and value == -0.125
    assert line(found, "random")["F1 to ceiling"].text == "0"


def test_first_tokens_error_modes_bytes_and_seconds(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    told = section(run, "answers")
    first = line(table(told, "First token and loss of the gold answer"), "residual")
    assert (first["first token"].text, first["first token"].interval) == ("25.0", wilson(5, N))
    assert (first["among five"].text, first["among five"].interval) == ("75.0", wilson(15, N))
    assert float(first["loss"].text) == pytest.approx(student([1 + i / 100 for i in range(N)])[0], rel=6e-3)
    modes = line(table(told, "Ways to be wrong"), "random")
    assert {name: cell.text for name, cell in modes.items()} == dict.fromkeys(
        ("exact", "empty", "repetition", "too long", "wrong"), "20.0"
    )
    sizes = table(told, "Bytes on the wire, and time")
    assert [cell.text for cell in line(sizes, "residual").values()] == ["4,000", "200", "20", "0.500"]
    assert [cell.text for cell in line(sizes, "residual-8bit").values()] == ["1,000", "200", "5", DASH]
    assert line(sizes, "text")["seconds"].text == "0.200"


def test_seeds_are_pooled_and_items_counted_once(new_run: NewRun) -> None:
    run = new_run()
    whole(run, seeds=(0, 1))
    told = section(run, "answers")
    cells = line(table(told, "Answers, with 95% intervals over items"), "residual")
    assert cells["F1"].count == "n 20 \u00d7 2 seeds" and cells["F1 to ceiling"].text == "83.3"
    one = student(F1["residual"])
    low, high = (float(end) for end in cells["F1"].interval.split("\u2013"))
    assert (low, high) == pytest.approx((100 * one[1], 100 * one[2]), abs=1.0), (
        "twice the seeds are not twice the items"
    )
    assert line(table(told, "Bytes on the wire, and time"), "residual")["seconds"].text == "0.550"
    restored = table(section(run, "reconstruction"), "Restored embeddings beside the original")
    cells = next(row.cells for row in restored.rows if row.cells[0].text == "residual")
    assert (cells[3].text, cells[3].interval, cells[3].count) == ("0.00150", "0.00100 to 0.00200", "2 seeds")


def test_reconstruction_contract_and_training(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    restored = table(section(run, "reconstruction"), "Restored embeddings beside the original")
    assert [[cell.text for cell in row.cells] for row in restored.rows][:2] == [
        ["residual", name, "1,045", "0.00100", "0.950", "0.200", "0.940", "91"] for name in ("held", "test")
    ]
    limits = table(section(run, "contract"), "What the limits cost")
    assert [cell.text for cell in limits.rows[0].cells] == ["test", "20", "25.0", "10.0", "0.0"]
    assert limits.rows[0].cells[2].interval == wilson(5, N)
    contract = table(section(run, "contract"), "The prompt contract of `tiny, fp32`, 1,000 parameters")
    assert [row.cells[0].text for row in contract.rows] == ["text", "latent", "limits"]
    charts = section(run, "training").charts
    assert [chart.key for chart in charts] == [
        "restore-residual-mse", "restore-residual-next_token", "restore-residual-f1"
    ]  # fmt: skip
    assert charts[2].series[0].y == (0.2, 0.4) and charts[2].group == "restore: F1 of answers to held-out items"
    assert charts[0].series[0].x[-1] == 40 and charts[0].series[0].y[0] == 1.0 and charts[0].log


def test_where_the_plan_is_lost_the_records_say_whose_run_it_is(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    (run.path / "plan.yaml").unlink()
    shown = [found.key for found in view(run.path).sections]
    assert "answers" in shown and "accuracy" not in shown
    found = table(section(run, "answers"), "Answers, with 95% intervals over items")
    assert line(found, "residual")["F1"].text == "62.5"


def test_a_run_without_a_record_says_so_of_each_section(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    found = [one for one in view(run.path).sections if one.key in OURS]
    assert len(found) == 5 and all(one.missing and not one.tables and not one.charts for one in found)
    assert "Nothing was answered." in write_report(run.path).read_text(encoding="utf-8")


def test_without_a_ceiling_nothing_is_relative(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    rows = [{**row, "ceiling_f1": None} for row in asked("random", "random")]
    run.job("answer.random.8.0", rows, seconds=1)
    cells = line(table(section(run, "answers"), "Answers, with 95% intervals over items"), "random")
    assert cells["F1 to ceiling"].text == DASH and cells["F1 to ceiling"].why == "no ceiling was measured"
    assert cells["F1 minus ceiling"].why == "no ceiling was measured"


@pytest.mark.parametrize("value", [None, "x", True, -3, 1e300, float("nan"), [1], {"a": 1}, EVIL])
def test_no_field_of_any_record_can_break_the_page(new_run: NewRun, value: Any) -> None:
    """Every field of every kind of record in turn missing, and holding what it must not."""
    run = new_run()
    plan(run)
    jobs = {
        "model": model(),
        "text": [item(i, "ceiling", 0.5) for i in range(3)],
        "restore.residual.8.0": trained("residual", steps=3),
        "answer.residual.8.0": asked("residual", "residual")[:3],
    }
    for job, records in jobs.items():
        fields = dict.fromkeys(name for record in records for name in record if name != "kind")
        torn = [record for record in records]
        for name in fields:
            torn += [{**record, name: value} for record in records]
            torn += [{key: kept for key, kept in record.items() if key != name} for record in records]
        run.lines(f"records/{job}.jsonl", torn)
    run.lines("events.jsonl", [{"event": "answered", "job": "text", "condition": "text", "n": value, "seconds": value}])
    with (run.path / "records" / "text.jsonl").open("a") as file:
        file.write(json.dumps(item(0, "text", 1.0))[:40])
    assert len(answered_sections(read_folder(run.path))) == 4 and browsed_section(read_folder(run.path)).items
    if isinstance(value, list | dict):  # sections that all studies share take an axis for what it must be
        return
    text = write_report(run.path).read_text(encoding="utf-8")
    assert "<script>window.owned" not in text and '<section id="answers">' in text
