"""Exact match and F1 over words, as the official scripts of SQuAD, TriviaQA and Natural Questions count them.

All lower the text, take out punctuation and articles, and keep single spaces. They differ in what punctuation is and
in what takes its place, so that each data set has its own way here. The best over all gold answers counts.

Sources: SQuAD's `evaluate-v2.0.py` (Rajpurkar et al. 2018, arXiv 1806.03822), TriviaQA's `triviaqa_evaluation.py`
(Joshi et al. 2017, arXiv 1705.03551), and for Natural Questions open ORQA's `eval_utils.py` (Lee et al. 2019, arXiv
1906.00300).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score

ARTICLES = re.compile(r"\b(a|an|the)\b")
NOTHING = str.maketrans("", "", string.punctuation)
# TriviaQA takes punctuation for a space; \u2018, \u2019 are single quotation marks and \u00b4 is the acute accent.
SPACES = str.maketrans(dict.fromkeys(string.punctuation + "\u2018\u2019\u00b4", " "))

Normalise = Callable[[str], str]


def _without_articles(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text).split())


def squad_form(text: str) -> str:
    """SQuAD's: punctuation (ASCII) vanishes, so that "U.S." and "US" are one, and "well-known" is one word."""
    return _without_articles(text.lower().translate(NOTHING))


def triviaqa_form(text: str) -> str:
    """TriviaQA's: punctuation, single quotation marks and accents standing alone become spaces."""
    return _without_articles(text.lower().translate(SPACES))


def nq_form(text: str) -> str:
    """Natural Questions': as SQuAD's, with letters and their accents taken apart first (Unicode NFD)."""
    return squad_form(unicodedata.normalize("NFD", text))


def exact_match(gold: str, text: str, normalise: Normalise = squad_form) -> bool:
    """Whether both are the same once normalised."""
    return normalise(gold) == normalise(text)


def f1(gold: str, text: str, normalise: Normalise = squad_form) -> float:
    """Harmonic mean of precision and recall over words, each as often as it occurs; where one has none, equality."""
    expected, found = normalise(gold).split(), normalise(text).split()
    if not expected or not found:
        return float(expected == found)
    common = (Counter(expected) & Counter(found)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_answers(item: QA, text: str, normalise: Normalise) -> Score:
    """The best over all gold answers; `partial` is F1. Without a gold answer, no answer ("") is the right one."""
    golds = item.answers or ("",)
    return Score(
        exact=any(exact_match(gold, text, normalise) for gold in golds),
        partial=max(f1(gold, text, normalise) for gold in golds),
    )


def score_squad(item: QA, text: str) -> Score:
    """As SQuAD 2.0 scores: gold answers of nothing but articles and punctuation do not count."""
    golds = tuple(gold for gold in item.answers if squad_form(gold))
    return score_answers(replace(item, answers=golds), text, squad_form)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares over `n` items, in [0, 1]; None where there are none."""

    exact: float | None
    f1: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What SQuAD's script prints, as shares: over all questions, those with an answer, and those without."""

    all: Share
    answerable: Share
    unanswerable: Share


def totals(items: Iterable[QA], predictions: Mapping[str, str]) -> Totals:
    """SQuAD's scores of one prediction for every item, by id.

    Raises:
        StepwellError: an item has no prediction. The official script leaves it out and divides by the rest; here the
            number of items never changes silently.
    """
    items = list(items)
    missing = [item.id for item in items if item.id not in predictions]
    if missing:
        raise StepwellError(
            f"{len(missing)} of {len(items)} items have no prediction, {missing[0]!r} for one",
            'predict "" where there is no answer',
        )
    scored = [(bool(item.answers), score_squad(item, predictions[item.id])) for item in items]
    return Totals(
        all=_share([score for _, score in scored]),
        answerable=_share([score for answerable, score in scored if answerable]),
        unanswerable=_share([score for answerable, score in scored if not answerable]),
    )


def _share(scores: list[Score]) -> Share:
    n = len(scores)
    partial = [score.partial for score in scores if score.partial is not None]
    return Share(exact=sum(score.exact for score in scores) / n if n else None, f1=sum(partial) / n if n else None, n=n)
