"""Exact match and F1: against the official script's totals on real questions, and by hand."""

from __future__ import annotations

import random

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks import openqa, squad
from stepwell.tasks.base import QA, Score
from stepwell.tasks.qa_scores import f1, nq_form, score_squad, squad_form, totals, triviaqa_form


def item(*answers: str, name: str = "q") -> QA:
    return QA(id=name, question="Which?", answers=answers)


def predicted(items: list[QA]) -> dict[str, str]:
    """A prediction of every sort: none, a gold answer in disguise, words of the context, words of the question."""
    found = {}
    for place, one in enumerate(items):
        gold = one.answers[-1] if one.answers else "nothing"
        context = " ".join((one.context or "").split()[:5])
        found[one.id] = ["", f"The  {gold.upper()}!", context, " ".join(one.question.split()[-3:])][place % 4]
    return found


def test_totals_are_those_of_the_official_script(shared_data):
    # evaluate-v2.0.py gave these on the same predictions: percent exact, percent F1, questions.
    official = {
        "all": (24.385026737967916, 25.79665541509881, 2805),
        "answerable": (24.491392801251955, 27.58968578979045, 1278),
        "unanswerable": (24.29600523903078, 24.29600523903078, 1527),
    }
    items = squad.load_squad(shared_data("squad/dev-a.json"), unanswerable=True)
    found = totals(items, predicted(items))
    for part, (exact, f1_score, n) in official.items():
        share = getattr(found, part)
        assert share.n == n
        assert (100 * share.exact, 100 * share.f1) == pytest.approx((exact, f1_score), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "squad_one", "triviaqa_one", "nq_one"),
    [
        ("The  U.S. Army!", "us army", "u s army", "us army"),
        ("a well-known an_the", "wellknown anthe", "well known", "wellknown anthe"),
        ("\u2018Paris\u2019", "\u2018paris\u2019", "paris", "\u2018paris\u2019"),
        # With its ring taken off, the first letter is an article to ORQA's script.
        ("Ångström", "ångström", "ångström", "\u030angstro\u0308m"),
        ("THE", "", "", ""),
    ],
)
def test_each_script_has_its_own_normal_form(text: str, squad_one: str, triviaqa_one: str, nq_one: str):
    assert squad_form(text) == squad_one
    assert triviaqa_form(text) == triviaqa_one
    assert nq_form(text) == nq_one


def test_f1_is_that_of_word_counts():
    generator = random.Random(0)
    for _ in range(200):
        gold, text = (generator.choices("bcdef", k=generator.randint(1, 6)) for _ in range(2))
        # By brute force: take each word of the text out of what is left of the gold answer.
        left, common = list(gold), 0
        for word in text:
            if word in left:
                left.remove(word)
                common += 1
        expected = 2 * common / (len(gold) + len(text))
        assert f1(" ".join(gold), " ".join(text)) == pytest.approx(expected, abs=1e-12)


def test_the_best_of_all_golds_counts():
    assert score_squad(item("Denmark", "Denmark, Iceland and Norway"), "denmark iceland and norway").exact
    assert score_squad(item("Denmark"), "Denmark and Norway") == Score(exact=False, partial=0.5)


@pytest.mark.parametrize(
    ("answers", "text", "exact"),
    [((), "", True), ((), "the", True), ((), "Paris", False), (("Paris",), "", False), (("the",), "", True)],
)
def test_questions_without_an_answer_want_none(answers: tuple[str, ...], text: str, exact: bool):
    assert score_squad(item(*answers), text) == Score(exact=exact, partial=float(exact))


def test_an_item_without_a_prediction_is_an_error_and_no_smaller_denominator():
    with pytest.raises(StepwellError, match=r"1 of 2 items have no prediction, 'b' for one"):
        totals([item("x", name="a"), item("y", name="b")], {"a": "x"})


def test_shares_of_nothing_are_undefined():
    found = totals([item("x")], {"q": "x"})
    assert (found.answerable.exact, found.answerable.n) == (1.0, 1)
    assert (found.unanswerable.exact, found.unanswerable.f1, found.unanswerable.n) == (None, None, 0)


def test_triviaqa_and_nq_score_by_their_own_forms():
    assert openqa.score_triviaqa(item("well known"), "well-known").exact
    assert not openqa.score_nq(item("well known"), "well-known").exact
    assert openqa.score_nq(item("Zoe\u0308"), "zo\u00eb").exact
    assert not openqa.score_triviaqa(item("Zoe\u0308"), "zo\u00eb").exact


def test_only_squad_leaves_out_golds_without_words():
    grade = item("A", "B")
    assert openqa.score_nq(grade, "a").exact and openqa.score_triviaqa(grade, "a").exact
    assert not squad.score(grade, "a").exact
