"""SQuAD 1.1 and 2.0: questions about paragraphs of Wikipedia, answered by a span, or not at all.

Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822). Read from the official JSON files, from one object
a line as the hub has them, or from the hub: `rajpurkar/squad`, `rajpurkar/squad_v2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score, check_ids
from stepwell.tasks.qa_scores import score_squad
from stepwell.tasks.sources import Entry, Source, hub_entries, hub_id, items_of, read_entries, read_json, texts

FORMAT = (
    'an official SQuAD file, {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}, or '
    'objects with id, question, context and answers {"text": [...]}'
)


def load_squad(source: Source, *, split: str = "validation", unanswerable: bool = False) -> list[QA]:
    """The questions of a file or a hub set, in its order, with all gold answers without doubles.

    Args:
        source: a path, or `owner/name` on the hub.
        split: of a hub set.
        unanswerable: whether to keep the questions of SQuAD 2.0 that have no answer; there is none to be learnt.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, the set cannot be had, two
            questions have one id, or none that was asked for is left.
    """
    hub = hub_id(source)
    if hub:
        items = items_of(hub_entries(*hub, split), source, FORMAT, _item)
    elif Path(source).suffix == ".jsonl":
        items = items_of(read_entries(Path(source), FORMAT), source, FORMAT, _item)
    else:
        items = _official(Path(source))
    kept = [item for item in items if unanswerable or item.answers]
    if not kept:
        raise StepwellError(
            f"none of the {len(items)} questions has an answer" if items else "the file holds no questions",
            "ask for the unanswerable ones too, or name another file" if items else f"expected {FORMAT}",
            path=source,
        )
    return kept


def score(item: QA, text: str) -> Score:
    """SQuAD's exact match and F1 over words: the best over all gold answers; "" is right where there is none."""
    return score_squad(item, text)


def _official(path: Path) -> list[QA]:
    found = read_json(path, FORMAT)
    if isinstance(found, list):
        return items_of(read_entries(path, FORMAT), path, FORMAT, _item)
    try:
        items = list(_questions(found))
    except KeyError as error:
        cause = f"another format: the field {error} is missing"
        raise StepwellError(cause, f"expected {FORMAT}", path=path) from None
    except (TypeError, ValueError) as error:
        raise StepwellError(f"another format: {error}", f"expected {FORMAT}", path=path) from None
    check_ids(items, str(path))
    return items


def _questions(found: Any) -> Iterator[QA]:
    for article in found["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield QA(
                    id=_text(entry["id"]),
                    question=_text(entry["question"]).strip(),
                    answers=_golds(entry),
                    context=_text(paragraph["context"]),
                )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} where a text is expected")
    return value


def _golds(entry: Entry) -> tuple[str, ...]:
    """The answers of an official entry; the plausible ones of unanswerable questions are no answers."""
    golds = texts([answer["text"] for answer in entry["answers"]])
    if golds is None:
        raise ValueError(f"question {entry['id']!r} has an answer that is no text")
    return golds


def _item(entry: Entry, name: str) -> QA | None:
    """An entry as the hub has it, or None where it is none."""
    answers = entry.get("answers")
    golds = texts(answers.get("text")) if isinstance(answers, dict) else None
    question, context = entry.get("question"), entry.get("context")
    if golds is None or not isinstance(question, str) or not isinstance(context, str) or not question.strip():
        return None
    return QA(id=str(entry.get("id", name)), question=question.strip(), answers=golds, context=context)
