"""Generated reading comprehension: paragraphs of plain facts, and questions whose answer is a span of them, or none.

For whoever has no SQuAD file at hand. People and places are made of syllables, so that no model knows them: what is
answered right was read. Each paragraph says the same of several people or places, so that the question has to be read
too; and where the fact that is asked for is not there, everything else about it is, as in SQuAD 2.0.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score
from stepwell.tasks.qa_scores import score_squad

FEWEST, MOST = 4, 200
"""Sentences of a paragraph: a question needs its subject and its relation twice each."""

STARTS = ("B", "Br", "D", "Dr", "F", "G", "Gr", "H", "K", "L", "M", "N", "P", "R", "S", "T", "Tr", "V", "W", "Y", "Z")
VOWELS = ("a", "e", "i", "o", "u")
MIDDLES = ("b", "d", "l", "ld", "lm", "m", "n", "nd", "r", "rn", "rv", "s", "st", "t", "v", "z")
FIRST_ENDS = ("a", "an", "e", "el", "en", "i", "in", "o", "or", "us")
LAST_ENDS = ("ack", "den", "ek", "ens", "ick", "ing", "ov", "sen", "uk", "wit")
TOWN_ENDS = ("borg", "dale", "ford", "ham", "hold", "mere", "stead", "ton", "wick", "worth")
RIVER_ENDS = ("ash", "eck", "ell", "ern", "isk", "une")

PEOPLE, TOWNS = "people", "towns"
POOLS: dict[str, tuple[str, ...]] = {
    "work": ("baker", "carpenter", "clockmaker", "dentist", "farmer", "fisherman", "gardener", "glassblower",
             "judge", "librarian", "mason", "miller", "nurse", "painter", "pharmacist", "potter", "roofer",
             "saddler", "shepherd", "surgeon", "tailor", "teacher", "translator", "weaver"),
    "animal": ("badger", "blackbird", "camel", "donkey", "falcon", "ferret", "goat", "goose", "hedgehog", "lizard",
               "parrot", "peacock", "pony", "rabbit", "raven", "tortoise", "turkey"),
    "instrument": ("bagpipe", "banjo", "bassoon", "cello", "clarinet", "flute", "guitar", "harp", "lute", "mandolin",
                   "piano", "trombone", "trumpet", "tuba", "viola", "violin", "zither"),
    "goods": ("bells", "brooms", "candles", "carpets", "cheese", "cider", "combs", "gloves", "honey", "knives",
              "lace", "lanterns", "mustard", "paper", "pottery", "salt", "silk", "soap", "umbrellas", "wool"),
    "colour": ("black", "blue", "brown", "golden", "green", "grey", "purple", "red", "silver", "white", "yellow"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Relation:
    """What can be said of somebody or of a place.

    Attributes:
        of: `people` or `towns`.
        value: the sort of its values: a key of `POOLS`, `people`, `towns`, `rivers`, `year`, `count` or `height`.
        says: sentences with {s} and {v}.
        asks: questions with {s}.
    """

    of: str
    value: str
    says: tuple[str, ...]
    asks: tuple[str, ...]


def _relation(of: str, value: str, says: Sequence[str], asks: Sequence[str]) -> Relation:
    return Relation(of=of, value=value, says=tuple(says), asks=tuple(asks))


RELATIONS = (
    _relation(PEOPLE, "work", ["{s} works as a {v}.", "{s} is a {v} by trade."],
              ["What does {s} work as?", "What is the trade of {s}?"]),
    _relation(PEOPLE, TOWNS, ["{s} lives in {v}.", "The home of {s} is in {v}."],
              ["Where does {s} live?", "In which town does {s} live?"]),
    _relation(PEOPLE, TOWNS, ["{s} went to school in {v}.", "The school that {s} went to is in {v}."],
              ["Where did {s} go to school?", "In which town did {s} go to school?"]),
    _relation(PEOPLE, "year", ["{s} was born in {v}.", "The year of birth of {s} is {v}."],
              ["When was {s} born?", "In which year was {s} born?"]),
    _relation(PEOPLE, "animal", ["{s} keeps a {v}.", "{s} has a tame {v}."],
              ["What animal does {s} keep?", "Which animal belongs to {s}?"]),
    _relation(PEOPLE, "instrument", ["{s} plays the {v}.", "The {v} is what {s} plays."],
              ["What does {s} play?", "Which instrument does {s} play?"]),
    _relation(PEOPLE, PEOPLE, ["{s} was taught by {v}.", "The teacher of {s} was {v}."],
              ["Who taught {s}?", "Who was the teacher of {s}?"]),
    _relation(PEOPLE, PEOPLE, ["{s} often writes to {v}.", "The letters of {s} go to {v}."],
              ["To whom does {s} write?", "Who gets the letters of {s}?"]),
    _relation(TOWNS, "rivers", ["{s} lies on the {v}.", "The river of {s} is the {v}."],
              ["On which river does {s} lie?", "Which river flows through {s}?"]),
    _relation(TOWNS, "count", ["{s} has {v} inhabitants.", "In {s} there live {v} people."],
              ["How many inhabitants does {s} have?", "How many people live in {s}?"]),
    _relation(TOWNS, "goods", ["{s} is known for its {v}.", "People come to {s} to buy {v}."],
              ["What is {s} known for?", "What do people buy in {s}?"]),
    _relation(TOWNS, PEOPLE, ["The mayor of {s} is {v}.", "{s} has elected {v} as its mayor."],
              ["Who is the mayor of {s}?", "Whom did {s} elect as its mayor?"]),
    _relation(TOWNS, "year", ["{s} was founded in {v}.", "The first houses of {s} were built in {v}."],
              ["When was {s} founded?", "In which year was {s} founded?"]),
    _relation(TOWNS, "day", ["The market of {s} is held on {v}.", "In {s} the market day is {v}."],
              ["When is the market of {s} held?", "On which day is there a market in {s}?"]),
    _relation(TOWNS, "height", ["The tower of {s} is {v} metres high.", "{s} has a tower of {v} metres."],
              ["How high is the tower of {s}?", "How many metres high is the tower of {s}?"]),
    _relation(TOWNS, "colour", ["The flag of {s} is {v}.", "{s} has a {v} flag."],
              ["What colour is the flag of {s}?", "What is the colour of the flag of {s}?"]),
)  # fmt: skip

Fact = tuple[str, Relation]


def make_reading(n: int, seed: int, sentences: int | tuple[int, int] = 8, *, unanswerable: float = 0.0) -> list[QA]:
    """Paragraphs with one question each; the first of a larger n are those of a smaller one.

    Args:
        n: items.
        seed: of all choices; sets of two seeds have no paragraph in common.
        sentences: of a paragraph, or the fewest and the most of them.
        unanswerable: the share of questions whose fact is not in the paragraph; they have no answer.

    Raises:
        StepwellError: a negative n, sentences beyond 4 to 200, or a share that is none.
    """
    fewest, most = (sentences, sentences) if isinstance(sentences, int) else sentences
    if n < 0 or not FEWEST <= fewest <= most <= MOST:
        raise StepwellError(
            f"{n} paragraphs of {fewest} to {most} sentences cannot be made",
            f"ask for 0 paragraphs or more, of {FEWEST} to {MOST} sentences",
        )
    if not 0 <= unanswerable <= 1:
        raise StepwellError(f"{unanswerable} of the questions is no share", "give a number from 0 to 1")
    return [_item(f"reading-{seed}-{place:06d}", fewest, most, unanswerable) for place in range(n)]


def score(item: QA, text: str) -> Score:
    """SQuAD's exact match and F1 over words: the best over all gold answers; "" is right where there is none."""
    return score_squad(item, text)


def _item(name: str, fewest: int, most: int, unanswerable: float) -> QA:
    rng = random.Random(name)
    length, absent = rng.randint(fewest, most), rng.random() < unanswerable
    # So few subjects that each is told of several times, and so many that the facts do not run out.
    names = _Names(rng)
    subjects = {of: [names.one(of) for _ in range(max(3, length // 6))] for of in (PEOPLE, TOWNS)}
    asked, facts = _facts(rng, subjects, length, absent)
    values = _values(rng, names, subjects, facts)
    rng.shuffle(facts)
    told = [rng.choice(relation.says).format(s=subject, v=values[subject, relation]) for subject, relation in facts]
    subject, relation = asked
    answers = () if absent else (values[asked],)
    return QA(id=name, question=rng.choice(relation.asks).format(s=subject), answers=answers, context=" ".join(told))


def _facts(rng: random.Random, subjects: dict[str, list[str]], length: int, absent: bool) -> tuple[Fact, list[Fact]]:
    """The fact that is asked for, and those that are told.

    Where it is not told, it has exchanged its subject with another: everybody and every relation come up as often as
    they would otherwise, so that counting says nothing about whether there is an answer.
    """
    relation = rng.choice(RELATIONS)
    mine, second, third = rng.sample(subjects[relation.of], 3)
    one, two = rng.sample([other for other in RELATIONS if other.of == relation.of and other is not relation], 2)
    asked = (mine, relation)
    told, untold = [asked, (third, two)], [(mine, two), (third, relation)]
    always = [(mine, one), (second, relation)]
    used = {*always, *told, *untold}
    free = [fact for other in RELATIONS for s in subjects[other.of] if (fact := (s, other)) not in used]
    return asked, always + (untold if absent else told) + rng.sample(free, length - FEWEST)


def _values(
    rng: random.Random, names: _Names, subjects: dict[str, list[str]], facts: Sequence[Fact]
) -> dict[Fact, str]:
    """What is said of each subject; within a relation no value comes twice while there are others."""
    found: dict[Fact, str] = {}
    for relation in dict.fromkeys(relation for _, relation in facts):
        draws, used = _draws(rng, names, subjects, relation.value), set[str]()
        for subject in (s for s, other in facts if other is relation):
            value = next(v for v in draws if v != subject and v not in used)
            found[subject, relation] = value
            used.add(value)
            if len(used) == len(POOLS.get(relation.value, ())):
                used.clear()
    return found


def _draws(rng: random.Random, names: _Names, subjects: dict[str, list[str]], value: str) -> Iterator[str]:
    """Values without end: of words, each once before one comes again."""
    while True:
        if value == "year":
            yield str(rng.randrange(1412, 1996))
        elif value == "count":
            yield f"{rng.randrange(1, 99)},{rng.randrange(1000):03d}"
        elif value == "height":
            yield str(rng.randrange(18, 140))
        elif value in POOLS:
            yield from rng.sample(POOLS[value], len(POOLS[value]))
        elif value in subjects and rng.random() < 0.5:
            yield rng.choice(subjects[value])
        else:
            yield names.one(value)


class _Names:
    """Names of syllables for one paragraph, none of whose words is part of another."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.taken = rng, set[str]()

    def one(self, of: str) -> str:
        """A new name for somebody, a town or a river."""
        if of == PEOPLE:
            return f"{self._word(FIRST_ENDS)} {self._word(LAST_ENDS)}"
        return self._word(TOWN_ENDS if of == TOWNS else RIVER_ENDS)

    def _word(self, ends: Sequence[str]) -> str:
        while True:
            parts = [self.rng.choice(STARTS) + self.rng.choice(VOWELS), self.rng.choice(MIDDLES), self.rng.choice(ends)]
            if parts[2][0] not in VOWELS:
                parts[1] = parts[1][0]
            word = "".join(parts)
            if not any(word in other or other in word for other in self.taken):
                self.taken.add(word)
                return word
