"""Open questions without a paragraph: TriviaQA and Natural Questions open, each with its own rule for what is right.

Joshi et al. 2017 (arXiv 1705.03551); Kwiatkowski et al. 2019 and Lee et al. 2019 (arXiv 1906.00300). Read from the
official files, from files with `golden_answers` as FlashRAG and others have them, or from the hub: `trivia_qa` as
`mandarjoshi/trivia_qa:rc.nocontext`, Natural Questions as `google-research-datasets/nq_open`.
"""

from __future__ import annotations

from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score
from stepwell.tasks.qa_scores import nq_form, score_answers, triviaqa_form
from stepwell.tasks.sources import Entry, Source, entries, items_of, texts

FORMAT = (
    "one object a line with question and answer or golden_answers (a list of texts), or an official TriviaQA file, "
    '{"Data": [{"QuestionId", "Question", "Answer": {"Value", "Aliases"}}]}'
)


def load_openqa(source: Source, *, split: str = "validation") -> list[QA]:
    """The questions of a file or a hub set, in its order, with all gold answers without doubles.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, the set cannot be had, a question
            has no answer (test sets keep theirs to themselves), or two questions have one id.
    """
    found = entries(source, split, FORMAT)
    if len(found) == 1 and isinstance(found[0].get("Data"), list):
        found = [entry if isinstance(entry, dict) else {} for entry in found[0]["Data"]]
    items = items_of(found, source, FORMAT, _item)
    without = [item.id for item in items if not item.answers]
    if without:
        raise StepwellError(
            f"{len(without)} of {len(items)} questions have no answer, {without[0]!r} for one",
            "name a set with answers: those of official test sets are not published",
            path=source,
        )
    return items


def score_triviaqa(item: QA, text: str) -> Score:
    """TriviaQA's exact match and F1 over words: the best over all aliases."""
    return score_answers(item, text, triviaqa_form)


def score_nq(item: QA, text: str) -> Score:
    """Natural Questions' exact match, and F1 over words in the same normal form: the best over all answers."""
    return score_answers(item, text, nq_form)


def _item(entry: Entry, name: str) -> QA | None:
    question = entry.get("question", entry.get("Question"))
    golds = _golds(entry)
    if not isinstance(question, str) or not question.strip() or golds is None:
        return None
    given = next((entry[key] for key in ("id", "question_id", "QuestionId") if key in entry), name)
    return QA(id=str(given), question=question.strip(), answers=golds)


def _golds(entry: Entry) -> tuple[str, ...] | None:
    found: Any = next((entry[key] for key in ("golden_answers", "answer", "answers", "Answer") if key in entry), None)
    if isinstance(found, dict):
        # The value first: it is what is to be learnt. The aliases of the official files do not always hold it.
        low = {key.lower(): value for key, value in found.items()}
        value, aliases = low.get("value"), low.get("aliases", [])
        found = [value, *aliases] if isinstance(value, str) and isinstance(aliases, list) else None
    return texts(found)
