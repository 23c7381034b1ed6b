"""Win, tie and loss by ground truth first; bands and red flags; pass@k against counting; nothing is dropped."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from grading_models import TEMPLATE, benchmark, result

from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import code, grade, open_ended
from stepwell.grading.passk import pass_at_k, passed
from stepwell.grading.protocol import PARTS, Decoding
from stepwell.grading.records import Result
from stepwell.grading.versus import BANDS, Match, Versus, against_before, banded, same_as_before, versus
from stepwell.sandbox.programs import Outcome, Program

MATHS, CODE = BANDS["maths"], BANDS["code"]


def counted(wins: int, ties: int, losses: int, undecided: int = 0) -> Versus:
    outcomes = ["win"] * wins + ["tie"] * ties + ["loss"] * losses + ["undecided"] * undecided
    return Versus(
        ours="a", theirs="b",
        matches=tuple(Match(id=str(i), outcome=o, by="truth", why="") for i, o in enumerate(outcomes)),  # pyright: ignore
    )  # fmt: skip


def test_truth_decides():
    found = versus(result([True, True, False, False]), result([True, False, True, False], model="gpt"))
    assert [(m.outcome, m.why) for m in found.matches] == [
        ("tie", "both right"), ("win", "only we are right"), ("loss", "only they are right"), ("tie", "both wrong")
    ]  # fmt: skip
    assert found.counts == {"win": 1, "tie": 2, "loss": 1, "undecided": 0}
    assert found.ids("loss", by="truth") == ["p002"] and found.ids("loss", by="judge") == []
    assert (found.ours, found.theirs) == ("m", "gpt")


def test_a_reference_has_its_own_template_but_not_its_own_items():
    ours, theirs = result([True, False]), result([True, True])
    other = replace(theirs, protocol=replace(theirs.protocol, template="of another model"))
    versus(ours, other)
    versus(ours, theirs, parts=PARTS)
    with pytest.raises(StepwellError, match=r"different protocols .template: "):
        versus(ours, other, parts=PARTS)
    with pytest.raises(StepwellError, match=r"different protocols .items: "):
        versus(ours, result([True, True, True]))
    with pytest.raises(StepwellError, match=r"different protocols .scorer: final-number/1 and exact"):
        versus(ours, replace(theirs, protocol=replace(theirs.protocol, scorer="exact")))


def test_a_reference_that_gave_no_answer_has_not_lost():
    asked = benchmark(2)
    protocol = asked.protocol(TEMPLATE, Decoding())
    answers, why = {"p000": "", "p001": "It is 1."}, {"p000": "the endpoint wrote nothing"}
    theirs = grade(asked, answers, model="gpt", protocol=protocol, unanswered=why)
    assert theirs.statuses["unanswered"] == theirs.statuses["right"] == 1 and theirs.accuracy().n == 1
    assert theirs.first_answers["p000"].why == why["p000"]
    match = versus(result([True, True]), theirs).matches[0]
    assert (match.outcome, match.by, match.why) == ("undecided", "none", "ours: right, theirs: unanswered")
    assert versus(result([True, True]), grade(asked, answers, model="gpt", protocol=protocol)).counts["win"] == 1


def test_a_judge_is_heard_only_where_truth_is_silent():
    verdict = Match(id="p000", outcome="win", by="judge", why="better")
    found = versus(result([False]), result([True]), {"p000": verdict})
    assert found.matches[0].outcome == "loss" and found.matches[0].by == "truth"
    talk = open_ended("talk", {"p000": "Hello?"}, split="test")
    one = grade(talk, {"p000": "Hi"}, model="m", protocol=talk.protocol(TEMPLATE, Decoding()))
    assert versus(one, one, {"p000": verdict}).matches[0] == verdict
    silent = versus(one, one).matches[0]
    assert (silent.outcome, silent.by, silent.why) == ("undecided", "none", "ours: silent, theirs: silent")


def programs(statuses: list[list[str]]) -> Result:
    """A code result whose answers are executed by a stand-in that reads the status off the answer."""

    def execute(given: list[Program]) -> list[Outcome]:
        return [Outcome(id=p.id, status=p.code, detail="", output="", seconds=0.0) for p in given]  # pyright: ignore

    names = [f"c{i}" for i in range(len(statuses))]
    asked = code(
        "humaneval", dict.fromkeys(names, "def f"), dict.fromkeys(names, "ok"), split="test",
        program=lambda name, text: Program(id=name, code=text, tests=""), execute=execute,  # pyright: ignore
    )  # fmt: skip
    decoding = Decoding(temperature=0.5, samples=len(statuses[0]))
    answers = dict(zip(names, statuses, strict=True))
    return grade(asked, answers, model="m", protocol=asked.protocol(TEMPLATE, decoding))


def test_limits_are_no_wrong_answers():
    kinds = ["passed", "failed", "timeout", "memory", "output", "sandbox-error"]
    found = programs([[kind] for kind in kinds])
    assert [r.status for r in found.records] == ["right", "wrong", *kinds[2:]]
    assert [r.right for r in found.records] == [True, False, None, None, None, None]
    assert found.accuracy().n == 2 and found.accuracy().value == 0.5
    match = versus(found, programs([["passed"]] * 6))
    assert match.counts == {"win": 0, "tie": 1, "loss": 1, "undecided": 4}
    assert match.matches[2].why == "ours: timeout, theirs: right" and match.share("loss").n == 6
    judged = {"c2": Match(id="c2", outcome="win", by="judge", why="")}
    assert versus(found, programs([["passed"]] * 6), judged).counts["undecided"] == 4


def test_pass_at_k_is_what_counting_says():
    for n in range(1, 8):
        for right in range(n + 1):
            marks = [True] * right + [False] * (n - right)
            for k in range(1, n + 1):
                drawn = [any(some) for some in itertools.combinations(marks, k)]
                assert pass_at_k(n, right, k) == pytest.approx(sum(drawn) / len(drawn), abs=1e-12)
    assert 0 < pass_at_k(100_000, 1, 10) < 2e-4
    for wrong in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(*wrong)


def test_pass_at_k_over_items():
    found = programs([["passed", "failed", "timeout"], ["failed", "failed", "failed"], ["sandbox-error"] * 3])
    one = passed(found, 2)
    assert one.estimate.value == pytest.approx((2 / 3 + 0) / 2)
    assert (one.limits, one.lost, one.items, one.estimate.n) == (1, 3, 1, 2)
    assert passed(result([True, False]), 1).estimate.method == "wilson"
    with pytest.raises(StepwellError) as caught:
        passed(result([True, False]), 2)
    assert caught.value.cause == "pass@2 is asked for, and items have 1 answers at most"


def test_the_original_at_50_items_is_inconclusive():
    """Adapter in memory, 3 wins and 35 ties of 50: inside the bands, and 50 items cannot say so."""
    found = counted(3, 35, 12)
    tie, win = (banded(found, band) for band in MATHS)
    assert tie.verdict == win.verdict == "inconclusive"
    assert tie.share.high - tie.share.low == pytest.approx(0.26, abs=0.02)  # +-13 points  # pyright: ignore
    assert tie.needed is not None and 70 <= tie.needed <= 120
    assert banded(counted(3 * 2, 35 * 2, 12 * 2), MATHS[0]).verdict == "inside" or tie.needed > 100
    big = banded(counted(60, 700, 240), MATHS[0])
    assert big.verdict == "inside" and big.needed is None and big.red_flag == ""
    assert tie.red_flag == "" and banded(counted(24, 10, 16), CODE[0]).red_flag == ""


def test_the_needed_number_decides():
    draw = random.Random(0)
    for _ in range(30):
        n, band = draw.randint(30, 80), draw.choice([*MATHS, *CODE])
        hits = draw.randint(0, n)
        outcomes = {"win": (hits, n - hits, 0), "tie": (n - hits, hits, 0)}[band.outcome]
        if band.outcome == "tie":
            outcomes = (0, hits, n - hits)
        one = banded(counted(*outcomes), band)
        if one.needed is None:
            continue
        times = -(-one.needed // n) + 1
        assert banded(counted(*(times * count for count in outcomes)), band).verdict != "inconclusive"


def test_the_ruined_merge_is_a_red_flag():
    flag = banded(counted(2, 14, 34), MATHS[0]).red_flag
    assert flag == "tie 28% of 50, below 50% (the whole interval lies below it); a ruined merge had 28%"
    assert banded(counted(6, 0, 44), CODE[0]).red_flag.startswith("win 12% of 50, below 30% (the whole interval")
    assert "the interval does not exclude it" in banded(counted(2, 24, 24), MATHS[0]).red_flag
    assert banded(counted(2, 14, 34), MATHS[0]).verdict == "below"
    assert banded(counted(0, 50, 0), MATHS[0]).verdict == "above"


def test_the_same_answers_as_before():
    old, new = result([True, False, True], model="base"), result([True, True, True], model="merged")
    assert same_as_before(new, old) == ""
    assert same_as_before(replace(old, model="merged"), old) == (
        "all 3 answers are word for word those of base: the adapter changes nothing, or the old checkpoint was graded "
        "again"
    )


def test_paired_against_before():
    draw = random.Random(1)
    old = [draw.random() < 0.3 for _ in range(200)]
    new = [one or draw.random() < 0.3 for one in old]
    found = against_before(result(new), result(old))
    assert found is not None and found.test == "mcnemar" and found.table is not None
    assert found.table.only_first == sum(new) - sum(old) and found.table.only_second == 0
    assert "the first is higher" in found.conclusion
    with pytest.raises(StepwellError, match=r"different protocols .decoding: max_tokens 512 and 64"):
        against_before(result(new), result(old, max_tokens=64))
    assert benchmark(3).name == "gsm8k"
