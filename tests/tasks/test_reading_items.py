"""Generated paragraphs: an independent reader finds every answer, and no rule that does not read finds one."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA
from stepwell.tasks.reading import POOLS, RELATIONS, Relation, make_reading, score

Told = list[tuple[str, int, str]]


def as_pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{v\}", "(?P<v>.+)"))


SAYS = [(place, as_pattern(said)) for place, relation in enumerate(RELATIONS) for said in relation.says]
ASKS = [(place, as_pattern(asked)) for place, relation in enumerate(RELATIONS) for asked in relation.asks]


def told(item: QA) -> Told:
    """The facts of a paragraph: subject, relation, value; each sentence can be read in one way only."""
    facts = []
    for sentence in (item.context or "")[:-1].split(". "):
        found = [(m["s"], place, m["v"]) for place, pattern in SAYS if (m := pattern.fullmatch(f"{sentence}."))]
        assert len(found) == 1, (sentence, found)
        facts += found
    return facts


def asked(item: QA) -> tuple[str, int]:
    (found,) = [(m["s"], place) for place, pattern in ASKS if (m := pattern.fullmatch(item.question))]
    return found


def read(item: QA) -> str:
    """The answer of a reader that knows nothing but the sentences' forms."""
    subject, relation = asked(item)
    values = [value for one, other, value in told(item) if (one, other) == (subject, relation)]
    assert len(values) <= 1
    return values[0] if values else ""


@pytest.mark.parametrize("sentences", [4, 8, (4, 30), 200])
def test_a_reader_finds_every_answer(sentences: int | tuple[int, int]):
    items = make_reading(12 if sentences == 200 else 150, 3, sentences, unanswerable=0.3)
    fewest, most = (sentences, sentences) if isinstance(sentences, int) else sentences
    lengths = [len(told(item)) for item in items]
    assert fewest == min(lengths) and max(lengths) == most
    for item in items:
        assert score(item, read(item)).exact
        assert item.answers == ((read(item),) if item.answers else ())
        assert all(answer in (item.context or "") for answer in item.answers)
    assert 0 < sum(not item.answers for item in items) < len(items)


def test_every_relation_is_asked_and_told_in_every_way():
    items = make_reading(1500, 0)
    assert {asked(item)[1] for item in items} == set(range(len(RELATIONS)))
    texts = " ".join((item.context or "") for item in items)
    assert all(re.search(re.escape(said).replace(r"\{s\}", ".+").replace(r"\{v\}", ".+"), texts)
               for relation in RELATIONS for said in relation.says)  # fmt: skip


def test_the_question_has_to_be_read():
    for item in make_reading(300, 1, unanswerable=0.5):
        subject, relation = asked(item)
        facts = told(item)
        others = [value for one, other, value in facts if other == relation and one != subject]
        assert others, "nobody else of whom this is told"
        assert sum(one == subject for one, _, _ in facts) >= 2
        assert not set(others) & set(item.answers), "the wrong sentence would do as well"


def test_counting_does_not_tell_whether_there_is_an_answer():
    items = make_reading(1600, 5, 10, unanswerable=0.5)
    counts: dict[bool, Counter[tuple[int, int]]] = {True: Counter(), False: Counter()}
    for item in items:
        subject, relation = asked(item)
        facts = told(item)
        mentions = sum(one == subject for one, _, _ in facts), sum(other == relation for _, other, _ in facts)
        counts[bool(item.answers)][mentions] += 1
    sides = {side: sum(found.values()) for side, found in counts.items()}
    assert min(sides.values()) > 720
    shared = sum(min(counts[True][k] / sides[True], counts[False][k] / sides[False]) for k in counts[True])
    assert shared > 0.93, "the best rule on these counts would be right more often than by chance"


def test_answers_stand_everywhere_and_none_is_common():
    items = make_reading(1200, 2, 8)
    places = Counter(place for item in items for place, fact in enumerate(told(item)) if fact[:2] == asked(item))
    # 150 each are expected, with a standard deviation of 11.5.
    assert set(places) == set(range(8)) and all(100 < count < 200 for count in places.values())
    assert Counter(item.answer for item in items).most_common(1)[0][1] < 0.03 * len(items)


def test_the_same_every_time_and_a_larger_set_goes_on():
    items = make_reading(20, 7, (4, 12), unanswerable=0.2)
    assert make_reading(20, 7, (4, 12), unanswerable=0.2) == items
    assert make_reading(5, 7, (4, 12), unanswerable=0.2) == items[:5]
    others = make_reading(20, 8, (4, 12), unanswerable=0.2)
    assert len({item.id for item in [*items, *others]}) == len({item.context for item in [*items, *others]}) == 40
    assert make_reading(0, 7) == []


def test_shares_of_none_and_all():
    assert all(item.answers for item in make_reading(50, 0))
    nothing = make_reading(50, 0, unanswerable=1)
    assert not any(item.answers or read(item) for item in nothing)
    assert score(nothing[0], "").exact and not score(nothing[0], "Rollo").exact


def test_articles_fit_their_words():
    assert all(word[0].lower() not in "aeiou" for name in ("work", "animal", "colour") for word in POOLS[name])
    assert not any(re.search(r"\ba [aeiou]", item.context or "") for item in make_reading(300, 4))


def test_relations_have_their_values():
    known = {*POOLS, "people", "towns", "rivers", "year", "count", "height"}
    assert all(isinstance(one, Relation) and one.value in known and one.of in ("people", "towns") for one in RELATIONS)


@pytest.mark.parametrize("sentences", [3, 201, (4, 201), (9, 8), 0])
def test_paragraphs_that_cannot_be_made_are_told(sentences: int | tuple[int, int]):
    with pytest.raises(
        StepwellError, match=r"cannot be made\n  Way out: ask for 0 paragraphs or more, of 4 to 200 sen"
    ):
        make_reading(3, 0, sentences)


def test_other_bad_numbers_are_told():
    with pytest.raises(StepwellError, match="-1 paragraphs of 8 to 8 sentences cannot be made"):
        make_reading(-1, 0)
    with pytest.raises(StepwellError, match=r"1\.5 of the questions is no share"):
        make_reading(1, 0, unanswerable=1.5)
