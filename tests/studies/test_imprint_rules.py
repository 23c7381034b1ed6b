"""The rules of `imprint`, each by itself: bars, verdicts, when a fit is given up, what a control is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import stepwell.studies.imprint.spotcheck as spotcheck
from stepwell.fitting.noise import seed_of
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.result import Record
from stepwell.latents.prompt import Problem, Target
from stepwell.similarity import Alike
from stepwell.stage import Memory, StageContext
from stepwell.stats import confidence_sequence, proportion_sequence
from stepwell.studies.imprint.asking import Asked, weighted
from stepwell.studies.imprint.baselines import bar_of, bars_of
from stepwell.studies.imprint.controls import donors_of, matched
from stepwell.studies.imprint.kept import Ends, Kept, Watch
from stepwell.studies.imprint.models import ByteTokenizer
from stepwell.studies.imprint.outcomes import POINTS, Part, converged, opposition, thinned
from stepwell.studies.imprint.pairs import load_pairs
from stepwell.studies.imprint.params import Abandon, BaselineParams, CheckParams, Facts
from stepwell.studies.imprint.spotcheck import Said, judged
from stepwell.tasks import arc, arithmetic, squad, sudoku
from stepwell.tasks.base import QA

# ---- converged


@pytest.mark.parametrize(
    ("random", "context", "bar", "why"),
    [
        (10.0, None, 3.0, "no full context: only the answer has one, the question before it"),
        (10.0, 1.0, 3.0, ""),  # the looser of the two counts
        (10.0, 2.0, 4.0, ""),
        (10.0, 4.9, 9.8, ""),
        (10.0, 5.0, 3.0, "2 x full context is no bar: random vectors lie below it"),
        (10.0, 9.0, 3.0, "2 x full context is no bar: random vectors lie below it"),
        (None, 2.0, None, ""),
        (None, None, None, ""),
    ],
)
def test_the_bar(random: float | None, context: float | None, bar: float | None, why: str) -> None:
    found = bar_of(BaselineParams(), random, context)
    assert found == (bar if bar is None else pytest.approx(bar), why)


def test_the_bars_are_the_plans() -> None:
    params = BaselineParams(below_random=0.5, below_full_context=3.0)
    assert bar_of(params, 10.0, 3.0) == (9.0, "")
    assert bar_of(params, 10.0, 4.0) == (5.0, "3 x full context is no bar: random vectors lie below it")


def test_a_mode_without_a_bar_leaves_open_whether_its_pair_converges() -> None:
    rows = [{"id": i, "mode": m, "bar": b} for i, m, b in (("a", "question", 2.0), ("a", "answer", None),
                                                            ("b", "question", 1.0), ("b", "answer", 3.0))]  # fmt: skip
    bars = bars_of(rows)
    assert bars == {"a": {"question": 2.0}, "b": {"question": 1.0, "answer": 3.0}}
    items = [QA(id=id, question="x", answers=("y",)) for id in ("a", "b", "c")]
    problems = [Problem(id=i.id, targets=tuple(Target(ids=(1, 2), mode=m) for m in i.targets())) for i in items]
    asked = Asked(items=items, problems=problems, faults={}, bars=bars, baselines={})
    assert asked.whole_bars() == {"b": bars["b"]}
    assert asked.pairs() == {"a": "a", "b": "b", "c": "c"}
    apart = [Problem(id=f"a/{m}", targets=()) for m in ("question", "answer")]
    assert Asked(items=items, problems=apart, faults={}, bars={}, baselines={}).pairs() == {
        "a/question": "a", "a/answer": "a"
    }  # fmt: skip


# ---- the spot check


ITEM = QA(id="1", question="Who wrote the Iliad?", answers=("Homer", "the poet Homer"))


def said(text: str | None, mode: str = "answer", *, item: QA = ITEM, exact: bool = False) -> Said:
    targets = (item.targets()[mode],)
    return Said(item=item, mode=mode, targets=targets, text=text, stopped=None if text is None else True, exact=exact)


@pytest.mark.parametrize(
    ("one", "verdict", "how"),
    [
        (said("Homer", exact=True), "pass", "exact"),
        (said(" the  homer. "), "pass", "normalised"),
        (said("The Poet Homer!"), "pass", "normalised"),  # another answer that counts
        (said("Homer the Greek"), "partial", "overlap"),
        (said("blind old Homer of Chios himself"), "fail", "none"),
        (said("Virgil"), "fail", "none"),
        (said(""), "fail", "none"),
        (said(" \n\t "), "fail", "none"),
        (said("."), "fail", "none"),
        (said("the"), "fail", "none"),
        (said(None), "fail", "none"),
        (said("who wrote Iliad", "question"), "pass", "normalised"),
        (said("who wrote it", "question"), "partial", "overlap"),
        (said("Homer", "question"), "fail", "none"),
    ],
)
def test_the_verdict_on_what_was_written(one: Said, verdict: str, how: str) -> None:
    found = judged(one, score=squad.score, words=True, partial=0.5)
    assert (found.verdict, found.how, found.similarity) == (verdict, how, None)


@pytest.mark.parametrize("text", ["", " ", "?", "...", "a", "The", None])
@pytest.mark.parametrize("target", ["?", "the", "...", "a"])
def test_an_empty_text_never_passes(text: str | None, target: str) -> None:
    """Not even for a target that is nothing once normalised: only the very tokens count then."""
    item = QA(id="1", question=target, answers=(target,))
    for mode in ("question", "answer"):
        if text is None or not text.strip() or mode == "question":
            assert judged(said(text, mode, item=item), score=squad.score, words=True, partial=0.5).verdict != "pass"


def test_an_answer_is_judged_by_the_tasks_own_rule() -> None:
    item = QA(id="1", question="2+3=?", answers=("5",))
    assert judged(said(" 5 ", item=item), score=arithmetic.score, words=False, partial=0.5).how == "normalised"
    assert judged(said("55", item=item), score=arithmetic.score, words=False, partial=0.5).verdict == "fail"


def by_similarity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: list[Alike], **params: Any
) -> tuple[list[spotcheck.Verdict], list[tuple[str, str]]]:
    """The verdicts on one text of each kind, and the pairs that were compared."""
    asked: list[tuple[str, str]] = []

    def similarities(measure: Any, pairs: list[tuple[str, str]], **options: Any) -> list[Alike]:
        asked.extend(pairs)
        return values

    monkeypatch.setattr(spotcheck, "similarities", similarities)
    texts = [said("Homer", exact=True), said("Homer the Greek"), said("Virgil"), said(""), said(None)]
    verdicts = [judged(one, score=squad.score, words=True, partial=0.5) for one in texts]
    ctx: Any = StageContext(job=Any, folder=tmp_path, inputs={}, threads=1, seed=0, asked_device="cpu",
                            recorder=Memory())  # pyright: ignore[reportArgumentType]  # fmt: skip
    return spotcheck._by_similarity(CheckParams(**params), ctx, texts, verdicts), asked


def test_a_similarity_bar_lets_other_words_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = [Alike(value=0.8, why="a note"), Alike(value=0.79)]
    found, asked = by_similarity(monkeypatch, tmp_path, values, similarity={"kind": "overlap"})
    # What is exact is not asked about, nor is what was not written.
    assert asked == [("Homer", "Homer the Greek"), ("Homer", "Virgil")]
    assert [(v.verdict, v.how, v.similarity, v.why) for v in found] == [
        ("pass", "exact", None, ""), ("pass", "similar", 0.8, "a note"), ("fail", "none", 0.79, ""),
        ("fail", "none", None, ""), ("fail", "none", None, ""),
    ]  # fmt: skip


def test_a_similarity_that_is_undefined_changes_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = [Alike(value=None, why="the judge contradicts itself"), Alike(value=0.1)]
    found, _ = by_similarity(monkeypatch, tmp_path, values, similarity={"kind": "overlap"}, bar=0.1)
    assert [(v.verdict, v.how, v.similarity, v.why) for v in found[1:3]] == [
        ("partial", "overlap", None, "the judge contradicts itself"), ("pass", "similar", 0.1, ""),
    ]  # fmt: skip


def test_without_a_similarity_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, asked = by_similarity(monkeypatch, tmp_path, [])
    assert asked == [] and [v.verdict for v in found] == ["pass", "partial", "fail", "fail", "fail"]


# ---- when a fit is given up


def ended(id: str, restart: int = 0, *, converged: bool = False, exact: bool = False) -> Record:
    return Record(id=id, restart=restart, seed=0, identity="", end="exact" if exact else "steps",
                  nats={"answer": 0.5}, own={"answer": 0.5 if converged else 2.0}, exact={"answer": exact})  # fmt: skip


def watch(pairs: int, *, restarts: int = 1, until_exact: bool = False, parts: tuple[str, ...] = (),
          **rule: Any) -> Watch:  # fmt: skip
    names = [f"p{i}" for i in range(pairs)]
    problems = {f"{name}/{part}": name for name in names for part in parts} or {name: name for name in names}
    recipe = FitRecipe(restarts=restarts, until_exact=until_exact)
    abandon = Abandon.model_validate(rule) if rule else None
    bars = {problem: {"answer": 1.0} for problem in problems}
    return Watch(abandon=abandon, recipe=recipe, bars=bars, pairs=problems, total=len(problems) * restarts)


def test_a_fit_of_which_nothing_converges_is_given_up_after_the_minimum() -> None:
    seen = watch(200, below=0.2, after=50)
    for i in range(50):
        assert seen.abandoned is None, f"given up after {i} pairs"
        seen.see(ended(f"p{i}"))
    assert seen.abandoned is not None
    assert seen.abandoned.startswith("0 of 50 pairs converged, at most ")
    assert seen.abandoned.endswith("at 95% over all looks; below 20% the fit is given up")


def test_the_sequence_decides_when_and_not_the_share_alone() -> None:
    """4 of 50 are less than a fifth, yet might be a fifth: the sequence waits until it is sure."""
    seen = watch(1000, below=0.2, after=50)
    count = 0
    while seen.abandoned is None:
        seen.see(ended(f"p{count}", converged=count % 25 in (3, 12)))  # 8%
        count += 1
        found = proportion_sequence(sum(i % 25 in (3, 12) for i in range(count)), count, 0.95)
        assert found.high is not None
        assert (seen.abandoned is not None) == (count >= 50 and found.high < 0.2)
        assert count < 1000
    assert count > 50


@pytest.mark.parametrize("share", [5, 4, 3, 2])
def test_a_fit_of_which_enough_converge_is_never_given_up(share: int) -> None:
    seen = watch(400, below=0.2, after=50)
    for i in range(400):
        seen.see(ended(f"p{i}", converged=i % share == 0))
    assert seen.abandoned is None and seen.ended == 400


def test_a_watch_without_a_rule_gives_nothing_up() -> None:
    seen = watch(100)
    for i in range(100):
        seen.see(ended(f"p{i}"))
    assert seen.abandoned is None


def test_a_pair_counts_when_its_last_restart_has_ended() -> None:
    seen = watch(20, restarts=3, below=0.9, after=2, confidence=0.5)
    for i in range(20):
        seen.see(ended(f"p{i}", 0))
        seen.see(ended(f"p{i}", 1))
    assert seen.abandoned is None, "every pair had a restart to come"
    for i in range(20):
        seen.see(ended(f"p{i}", 2, exact=True))
    assert seen.abandoned is None and seen.exact == 20 and seen.ended == 60


def test_with_until_exact_the_first_exact_restart_is_the_last() -> None:
    seen = watch(100, restarts=5, until_exact=True, below=0.5, after=5)
    for i in range(100):
        seen.see(ended(f"p{i}", 0, exact=i < 5))
    assert seen.abandoned is None, "95 pairs have restarts to come, and the other five are exact"


def test_a_pair_whose_modes_are_fitted_apart_is_one_pair() -> None:
    seen = watch(10, parts=("question", "answer"), below=0.9, after=5, confidence=0.5)
    for i in range(10):
        seen.see(ended(f"p{i}/question", converged=True))
    assert seen.abandoned is None
    for i in range(4):
        seen.see(ended(f"p{i}/answer"))
    assert seen.abandoned is None, "four pairs have ended, and the rule asks for five"
    seen.see(ended("p4/answer"))
    assert str(seen.abandoned).startswith("0 of 5 pairs converged"), "one mode that converges makes no pair"


def test_a_pair_that_was_given_up_has_not_converged() -> None:
    seen = watch(200, below=0.2, after=50)
    for i in range(50):
        assert seen.abandoned is None
        seen.lost(f"p{i}")
    assert str(seen.abandoned).startswith("0 of 50 pairs converged") and seen.ended == 0


def test_a_fit_that_leaks_is_given_up_while_it_runs() -> None:
    """Losses of zero on many pairs; a few are no alarm, nor are exact pairs whose loss is small."""
    leaking, honest = watch(400, below=0.2, after=50), watch(400, below=0.2, after=50)
    for i in range(400):
        honest.see(replace(ended(f"p{i}", converged=True, exact=True), nats={"answer": 0.0 if i % 40 == 0 else 0.01}))
    assert honest.abandoned is None
    seen = 0
    while leaking.abandoned is None:
        nats = {"answer": 0.0 if seen % 5 == 0 else 0.01}
        leaking.see(replace(ended(f"p{seen}", converged=True, exact=True), nats=nats))
        seen += 1
    # A pair leaks when its best restart does, as its own record says.
    best = watch(400, restarts=2, below=0.2, after=50)
    for i in range(400):
        best.see(replace(ended(f"p{i}", converged=True, exact=True), nats={"answer": 0.01}))
        best.see(replace(ended(f"p{i}", 1), nats={"answer": 0.0}))
    assert best.abandoned is None
    assert [(alert.monitor, alert.stop) for alert in leaking.alerts] == [("leak", True)] and 50 <= seen < 200
    assert leaking.abandoned.endswith("at 95% over all looks; above 5% a leak is suspected")


def pulled(id: str, generator: torch.Generator, together: float, restart: int = 0) -> Record:
    """A restart whose two losses share so much of their changes: 1 = all, -1 = all but the sign, 0 = nothing."""
    walk, own = torch.randn(2, 60, generator=generator, dtype=torch.float64).cumsum(1)
    answer = together * walk + (1 - together**2) ** 0.5 * own
    curves = {"question": 60 + walk, "answer": 60 + answer}
    return Record(
        id=id, restart=restart, seed=0, identity="", end="steps", exact=dict.fromkeys(curves, False),
        nats={mode: float(curve[-1]) for mode, curve in curves.items()},
        curve={mode: tuple(enumerate(curve.tolist())) for mode, curve in curves.items()},
    )  # fmt: skip


def test_modes_that_pull_apart_are_told_while_the_fit_runs_and_stop_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, found = watch(60), {}
    while not seen.alerts:
        id = f"p{len(found)}"
        record = pulled(id, generator, -0.8)
        found[id] = opposition(record)
        seen.see(record)
    assert 5 <= len(found) < 30, "seen long before the fit has ended"
    sequence = confidence_sequence(list(found.values()), 0.95, bounds=(-1.0, 1.0))
    earlier = confidence_sequence(list(found.values())[:-1], 0.95, bounds=(-1.0, 1.0))
    assert sequence.high is not None and earlier.high is not None and sequence.high < 0 <= earlier.high
    (alert,) = seen.alerts
    assert (alert.monitor, alert.step, alert.stop, seen.abandoned) == ("conflict", len(found), False, None)
    assert f"correlation is {sequence.value:.2f} in the mean of {len(found)} pairs" in alert.message
    worst = sorted(found, key=found.__getitem__)[:3]
    assert "most in " + ", ".join(f"`{id}` ({found[id]:.2f})" for id in worst) in alert.message
    assert "`paraphrases: true`" in alert.message
    for place in range(len(found), 60):
        seen.see(pulled(f"p{place}", generator, -0.8))
    assert len(seen.alerts) == 1, "told once"


def test_modes_that_get_along_or_ignore_each_other_raise_no_alert_however_often_one_looks() -> None:
    generator = torch.Generator().manual_seed(1)
    naive = 0
    for _ in range(12):
        seen, found = watch(60), []
        for place in range(60):
            record = pulled(f"p{place}", generator, 0.0)
            found.append(opposition(record))
            seen.see(record)
        assert not seen.alerts
        looks = (torch.tensor(found[:n]) for n in range(5, 61))
        naive += any(float(look.mean() + 1.96 * look.std() / len(look) ** 0.5) < 0 for look in looks)
    assert naive >= 2, "an interval for one look would have raised false alarms"
    along = watch(60)
    for place in range(60):
        along.see(pulled(f"p{place}", generator, 0.8))
    assert not along.alerts


def test_the_conflict_of_a_pair_is_that_of_its_best_restart() -> None:
    """As in the pair's own record; vectors apart have no conflict at all."""
    generator = torch.Generator().manual_seed(2)
    seen, apart = watch(40, restarts=2), watch(40, parts=("question", "answer"))
    for place in range(40):
        good, bad = pulled(f"p{place}", generator, 0.8), pulled(f"p{place}", generator, -0.95, restart=1)
        seen.see(replace(good, nats={"question": 0.1, "answer": 0.1}))
        seen.see(replace(bad, nats={"question": 9.0, "answer": 9.0}))
        for mode, curve in (bad.curve or {}).items():
            alone = replace(bad, id=f"p{place}/{mode}", nats={mode: 9.0}, exact={mode: False}, curve={mode: curve})
            apart.see(alone)
    assert not seen.alerts and not apart.alerts and seen.ended == apart.ended == 80


def test_one_mode_that_was_given_up_makes_no_pair() -> None:
    seen = watch(10, parts=("question", "answer"), below=0.9, after=5, confidence=0.5)
    for i in range(5):
        assert seen.abandoned is None
        seen.see(ended(f"p{i}/question", converged=True))
        seen.lost(f"p{i}/answer")
    assert str(seen.abandoned).startswith("0 of 5 pairs converged")


def test_kept_chunks_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "ended")
    assert kept.chunks() == []
    generator = torch.Generator().manual_seed(1)
    parts = {
        range(8, 16): Ends(ended=tuple((ended(f"p{i}", r), torch.randn(2, 3, generator=generator))
                                       for i in range(8) for r in (0, 1))),
        range(0, 8): Ends(ended=((ended("a", exact=True), torch.zeros(2, 3, dtype=torch.float64)),)),
        range(1_000_000, 1_000_001): Ends(failed={"b": "ValueError: ä"}),
    }  # fmt: skip
    for chunk, part in parts.items():
        kept.write(chunk, part)
    assert kept.chunks() == [range(8), range(8, 16), range(1_000_000, 1_000_001)]
    for chunk, part in parts.items():
        found = kept.read(chunk)
        assert [record for record, _ in found.ended] == [record for record, _ in part.ended]
        assert all(torch.equal(ours, theirs) and ours.dtype == theirs.dtype
                   for (_, ours), (_, theirs) in zip(found.ended, part.ended, strict=True))  # fmt: skip
        assert found.failed == part.failed
    kept.remove()
    assert not (tmp_path / "ended").exists()
    kept.remove()


def test_what_a_dead_worker_kept_late_counts_once(tmp_path: Path) -> None:
    """Its chunk was halved since: whole chunks come before parts of them, and what overlaps is left out."""
    kept = Kept(tmp_path / "ended")
    for chunk in (range(4, 8), range(8), range(4), range(8, 9)):
        kept.write(chunk, Ends())
    assert kept.chunks() == [range(8), range(8, 9)]


# ---- what is fitted, drawn and shuffled


def test_wordings_share_the_weight_of_their_mode() -> None:
    modes = ["question"] * 3 + ["answer"] + ["question"]
    problem = Problem(id="a", targets=tuple(Target(ids=(i, 9), mode=mode) for i, mode in enumerate(modes)))
    found = weighted(problem)
    assert [target.weight for target in found.targets] == [0.25, 0.25, 0.25, 1.0, 0.25]
    assert [(target.ids, target.mode) for target in found.targets] == [(t.ids, t.mode) for t in problem.targets]
    assert weighted(Problem(id="b", targets=())).targets == ()


@pytest.mark.parametrize("count", [0, 1, 2, 59, 60, 61, 62, 119, 120, 1000])
def test_a_thinned_curve_keeps_its_ends_and_its_order(count: int) -> None:
    points = [(step * 10, float(step)) for step in range(count)]
    found = thinned(points)
    assert len(found) == min(count, POINTS) and set(found) <= set(points)
    assert list(found) == sorted(set(found))
    if count:
        assert (found[0], found[-1]) == (points[0], points[-1])
        gaps = Counter((b[0] - a[0]) // 10 for a, b in pairwise(found))
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_random_vectors_match_the_mean_and_deviation_of_those_they_stand_for() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = 3 + 0.2 * torch.randn(64, 512, generator=generator)
    found = matched(vectors, seed_of(0, "a", 0))
    assert found.shape == vectors.shape and found.dtype == vectors.dtype
    error = float(vectors.std()) / vectors.numel() ** 0.5
    assert abs(float(found.mean() - vectors.mean())) < 5 * error
    assert float(found.std()) == pytest.approx(float(vectors.std()), rel=0.02)
    assert torch.equal(found, matched(vectors, seed_of(0, "a", 0)))
    other = matched(vectors, seed_of(0, "b", 0))
    for first, second in ((found, other), (found, vectors)):
        assert abs(float(torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1])) < 0.03


def pairs_of(*texts: tuple[str, str]) -> list[QA]:
    return [QA(id=f"p{i}", question=question, answers=(answer,)) for i, (question, answer) in enumerate(texts)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_no_pair_is_read_from_its_own_vectors(count: int) -> None:
    items = pairs_of(*((f"q{i}", f"a{i}") for i in range(count)))
    found = donors_of(items)
    assert len(found) == (count if count > 1 else 0)
    assert all(pair != donor for pair, donor in found.items())
    assert sorted(found.values()) == sorted(found)  # a ring


def test_no_pair_is_read_from_vectors_that_hold_its_own_text() -> None:
    items = pairs_of(("2+3=?", "5"), ("4+1=?", "5"), ("2+2=?", "4"), ("2+2=?", "four"))
    assert donors_of(items) == {"p0": "p2", "p1": "p2", "p2": "p0", "p3": "p0"}
    assert donors_of(items[:2]) == {}


def test_bytes_there_and_back() -> None:
    tokenizer, text = ByteTokenizer(), "Wer schrieb die Ilias? Ὅμηρος 🏛"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == text
    assert len(tokenizer) == 257 and max(ids) < 248, "bytes from 248 on stand in no text: modes may have them"


def test_the_facts_that_come_with_stepwell_are_questions_with_short_answers() -> None:
    found, left_out = load_pairs(Facts(n=40), 0)
    assert len(found) == len({item.question for item in found}) == 40 and left_out == 0
    assert all(item.question.endswith("?") and item.answer and len(item.answer.split()) <= 3 for item in found)


@pytest.mark.parametrize(
    ("task", "mode", "target", "written"),
    [
        (arithmetic, "answer", "-2", "2"),
        (arithmetic, "question", "7+9=?", "7-9=?"),
        (sudoku, "question", "3..4\n..1.\n.2..\n1..3", "34..\n..1.\n.2..\n1..3"),
        (arc, "question", "12\n34", "1234"),
    ],
)
def test_of_sums_and_grids_every_sign_counts(task: Any, mode: str, target: str, written: str) -> None:
    item = QA(id="a", question=target if mode == "question" else "0-2=?", answers=("-2" if mode == "answer" else "1",))
    assert judged(said(written, mode, item=item), score=task.score, words=False, partial=0.5).verdict == "fail"
    assert judged(said(f" {target}\n", mode, item=item), score=task.score, words=False, partial=0.5).how == "normalised"


def test_exact_counts_as_converged_and_any_restart_will_do() -> None:
    bars = {"ask": 0.1, "say": 0.1}

    def one(nats: float, *, exact: bool) -> Record:
        found = ended("p", exact=exact)
        return replace(found, own={"ask": nats, "say": 0.05}, exact={"ask": exact, "say": False})

    assert converged(one(0.7, exact=True), "ask", bars) is True  # above its bar
    assert converged(one(0.7, exact=False), "ask", bars) is False
    assert converged(one(0.7, exact=False), "ask", {}) is None
    far, both = replace(one(0.7, exact=True), own={"ask": 0.7, "say": 5.0}), one(0.05, exact=False)
    part = Part(problem="p", modes=("ask", "say"), restarts=(far, both), best=far, fault=None)
    assert part.converged({"p": bars}, ("ask", "say"))
    assert not Part(problem="p", modes=("ask", "say"), restarts=(far,), best=far, fault=None).converged(
        {"p": bars}, ("ask", "say")
    )
