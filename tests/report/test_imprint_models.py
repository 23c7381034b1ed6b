"""The report of study `imprint`: two models on the same pairs, paired item by item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imprint_records as made
from imprint_records import MODEL, TIER, fitted, is_near, line_of, plan, section, student, table, tagged

NewRun = Callable[..., Any]
OTHER = "tiny-135M"


def _models(run: Any, exact: int, other: int) -> None:
    plan(run, axes={"tier": [TIER], "model": [MODEL, OTHER]})
    run.job(f"joint.{TIER}.{MODEL}", fitted(20, exact), seconds=1)
    run.job(f"joint.{TIER}.{OTHER}", fitted(20, other, model=OTHER), seconds=1)


def test_two_models_are_compared_over_the_pairs_of_both(new_run: NewRun) -> None:
    run = new_run()
    _models(run, 15, 9)
    gains = [{"id": i, "mode": mode, "bits": float(place)} for place, i in enumerate(made.ids()) for mode in "qa"]
    run.job(f"measure.{TIER}.{MODEL}", tagged("gain", gains))
    run.job(f"measure.{TIER}.{OTHER}", tagged("gain", [{**gain, "bits": 1.0} for gain in gains], model=OTHER))
    line = line_of(table(section(run, "convergence"), "Models on the same pairs"), f"{MODEL} - {OTHER}", "joint")
    assert (line["n pairs of both"].text, line["exact points"].text) == ("20", "30")
    assert (line["only the first exact pairs"].text, line["only the second exact pairs"].text) == ("6", "0")
    is_near(line["bits held a pair"], *student([2.0 * place - 2.0 for place in range(20)]))
    # Bits are of the fit that was measured, and no other.
    for model in (MODEL, OTHER):
        run.job(f"paraphrased.{TIER}.{model}", fitted(20, 9, model=model), seconds=1)
    told = table(section(run, "convergence"), "Models on the same pairs")
    assert line_of(told, f"{MODEL} - {OTHER}", "paraphrased")["bits held a pair"].why
    assert not line_of(told, f"{MODEL} - {OTHER}", "joint")["bits held a pair"].why


def test_a_pair_of_one_model_alone_is_not_compared(new_run: NewRun) -> None:
    run = new_run()
    plan(run, axes={"tier": [TIER], "model": [MODEL, OTHER]})
    run.job(f"joint.{TIER}.{MODEL}", fitted(20, 20), seconds=1)
    some = [record for record in fitted(20, 0, model=OTHER) if record.get("id", "q000") < "q004"]
    run.job(f"joint.{TIER}.{OTHER}", some, seconds=1)
    line = line_of(table(section(run, "convergence"), "Models on the same pairs"), f"{MODEL} - {OTHER}", "joint")
    assert (line["n pairs of both"].text, line["exact points"].text) == ("4", "100")
    assert line["bits held a pair"].why


def test_one_model_is_compared_with_none(new_run: NewRun) -> None:
    run = new_run()
    made.whole(run)
    assert "Models on the same pairs" not in [one.title for one in section(run, "convergence").tables]
