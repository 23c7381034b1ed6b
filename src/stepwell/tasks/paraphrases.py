"""The same question, and the same answer, in other words: from a file, from an endpoint, or from a local model.

One set of vectors may have to hold any of several wordings. What a model writes is parsed strictly; what an item then
lacks is said, never silently dropped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stepwell.chat import Answer, Message, without_thinking
from stepwell.endpoint import Client, Endpoint
from stepwell.errors import StepwellError
from stepwell.localchat import LocalChat, LocalModel
from stepwell.spec import DataFile, Spec
from stepwell.tasks.base import QA
from stepwell.tasks.sources import Entry, read_entries

Mode = Literal["question", "answer"]
Wordings = dict[str, dict[str, tuple[str, ...]]]

FORMAT = "one object a line, {id, mode, text} with mode question or answer, or {id, questions: [...], answers: [...]}"
LISTS: dict[str, Mode] = {"questions": "question", "answers": "answer"}
FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


class FromFile(Spec):
    """Paraphrases that are there already.

    Attributes:
        path: JSON lines, `{id, mode, text}` or `{id, questions: [...], answers: [...]}`.
    """

    kind: Literal["file"] = "file"
    path: DataFile


class FromEndpoint(Spec):
    """Paraphrases that a model behind an endpoint writes."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: Endpoint


class FromModel(Spec):
    """Paraphrases that a model on this machine writes, greedily."""

    kind: Literal["model"] = "model"
    local: LocalModel


class ParaphraseSpec(Spec):
    """Which paraphrases an item gets.

    Attributes:
        source: where they come from.
        n: paraphrases of each text, at most.
        modes: which of an item's texts are paraphrased.
    """

    source: FromFile | FromEndpoint | FromModel = Field(discriminator="kind")
    n: int = Field(default=4, ge=1, le=100)
    modes: tuple[Mode, ...] = Field(default=("question", "answer"), min_length=1)


@dataclass(frozen=True, kw_only=True)
class Lack:
    """What an item does not have: `found` paraphrases of the `wanted`, and why not more."""

    id: str
    mode: Mode
    wanted: int
    found: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Paraphrases:
    """The paraphrases of a set.

    Attributes:
        texts: item id -> mode -> texts, none of them the original and none twice (case and spaces aside). Every item
            has every wanted mode in which it has a text; where nothing was found, without a text.
        lacks: where there are fewer than wanted.
    """

    texts: Wordings
    lacks: tuple[Lack, ...]


def paraphrase(
    items: Sequence[QA],
    spec: ParaphraseSpec,
    *,
    cache: Path,
    device: str = "auto",
    known: Collection[str] = (),
    between: Callable[[], None] | None = None,
) -> Paraphrases:
    """The paraphrases of items.

    Args:
        items: each with its own id.
        spec: where they come from, and how many.
        cache: the folder in which answers of models are kept; it should outlive the stage.
        device: for a local model.
        known: ids that a file may name besides those of the items: of the set that they were drawn from.
        between: called before each request or batch, such as a stage's `stop_if_asked`.

    Raises:
        StepwellError: a file that cannot be used or does not cover the items, an endpoint that is gone or refuses, a
            model that cannot be loaded.
    """
    wanted: list[tuple[QA, Mode]] = [(i, mode) for i in items for mode in spec.modes if mode in i.targets()]
    source = spec.source
    if source.kind == "file":
        given = read_paraphrases(source.path, items, modes=spec.modes, known=known)
        found = [_new(given[item.id][mode], item.targets()[mode])[: spec.n] for item, mode in wanted]
        whys = [f"the file gives {len(texts)} that are new" for texts in found]
        return _result(wanted, found, whys, spec.n)
    prompts = [prompt(item, mode, spec.n) for item, mode in wanted]
    originals = [item.targets()[mode] for item, mode in wanted]
    checks = [_check(original) for original in originals]
    if source.kind == "endpoint":
        with Client(source.endpoint, cache, between=between) as client:
            answers = [client.ask(messages, check) for messages, check in zip(prompts, checks, strict=True)]
    else:
        answers = LocalChat(source.local, cache, device=device, between=between).ask_all(prompts, checks)
    found = [_texts(answer, original)[: spec.n] for answer, original in zip(answers, originals, strict=True)]
    whys = [a.why or f"{len(texts)} of what it wrote are new" for a, texts in zip(answers, found, strict=True)]
    return _result(wanted, found, whys, spec.n)


def prompt(item: QA, mode: Mode, n: int) -> list[Message]:
    """What a model is asked: one message, as not every chat template knows a system's. Texts stand in it as JSON."""
    texts = f"{'s' if n > 1 else ''}"
    form = f"Reply with one JSON list of {n} string{texts} and with nothing else."
    original = json.dumps(item.targets()[mode], ensure_ascii=False)
    if mode == "question":
        task = f"Write {n} paraphrase{texts} of this question: other words, the same meaning, the same answer."
        content = f"{task} {form}\n\nQuestion: {original}"
    elif item.question:
        question = json.dumps(item.question, ensure_ascii=False)
        task = f"Write {n} other wording{texts} of this answer to a question: the same meaning, still a right answer."
        content = f"{task} {form}\n\nQuestion: {question}\nAnswer: {original}"
    else:
        content = f"Write {n} paraphrase{texts} of this text: other words, the same meaning. {form}\n\nText: {original}"
    return [{"role": "user", "content": content}]


def parse(text: str) -> tuple[str, ...]:
    """The texts of an answer: a JSON list of them, alone or in one code fence, after whatever was thought aloud.

    Raises:
        ValueError: it is anything else; the message says what.
    """
    text = without_thinking(text)
    fenced = FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except ValueError:
        raise ValueError("it is not one JSON list and nothing else") from None
    if not isinstance(found, list) or not found:
        raise ValueError("it is JSON, but not a list with something in it")
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError("the list holds something else than texts, or a blank one")
    return tuple(one.strip() for one in found)


def read_paraphrases(
    path: Path, items: Sequence[QA], *, modes: Collection[Mode] = ("question", "answer"), known: Collection[str] = ()
) -> Wordings:
    """All paraphrases that a file gives to items: id -> mode -> texts, as they stand there.

    Args:
        path: in either format, both may be mixed.
        items: whose texts have to be covered, in these `modes`.
        modes: those wanted; a file may hold the other one as well.
        known: further ids that are no mistake; they are left out.

    Raises:
        StepwellError: the file is missing, empty or not JSON; or it names unknown ids or modes, holds empty texts or
            other fields, or has nothing for a text of an item. One error: the first of it, and how many there are.
    """
    by_id = {item.id: item for item in items}
    found: dict[str, dict[str, list[str]]] = {item.id: {mode: [] for mode in item.targets()} for item in items}
    faults: list[tuple[str, str]] = []
    for place, entry in enumerate(read_entries(path, FORMAT), start=1):
        name = str(entry.get("id", ""))
        rows = _rows(entry)
        if rows is None:
            faults.append(("of another format", f"entry {place} has the fields {', '.join(entry) or 'none'}"))
        elif name not in by_id:
            if name not in known:
                faults.append(("of an unknown id", f"entry {place} names the id {name!r}, which is not in the set"))
        else:
            for mode, text in rows:
                if mode not in ("question", "answer"):
                    faults.append(("of a wrong mode", f"entry {place} has the mode {mode!r}"))
                elif mode not in found[name]:
                    faults.append(("of a wrong mode", f"entry {place}: {name!r} has no {mode} to paraphrase"))
                elif not isinstance(text, str) or not text.strip():
                    faults.append(("an empty text", f"entry {place} gives {name!r} an empty {mode}"))
                else:
                    found[name][mode].append(text.strip())
    lacking = [(name, mode) for name, own in found.items() for mode in modes if mode in own and not own[mode]]
    faults += [("without a paraphrase", f"{name!r} has none for its {mode}") for name, mode in lacking]
    if faults:
        counts = ", ".join(f"{count} {sort}" for sort, count in Counter(sort for sort, _ in faults).items())
        raise StepwellError(f"{faults[0][1]} ({counts})", f"correct the file: {FORMAT}", path=path)
    return {name: {mode: tuple(texts) for mode, texts in own.items()} for name, own in found.items()}


def _rows(entry: Entry) -> list[tuple[Any, Any]] | None:
    """(mode, text) pairs of an entry, whatever they are; None for another format."""
    if "id" not in entry:
        return None
    if "mode" in entry and "text" in entry:
        return [(entry["mode"], entry["text"])]
    lists = [(mode, entry[key]) for key, mode in LISTS.items() if key in entry]
    if not lists or not all(isinstance(texts, list) for _, texts in lists):
        return None
    return [(mode, text) for mode, texts in lists for text in texts]


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def _new(texts: Iterable[str], original: str) -> tuple[str, ...]:
    """Those that are not the original, each once, case and spaces aside."""
    kept = {_same(original): ""}
    for text in texts:
        kept.setdefault(_same(text), text)
    return tuple(text for text in kept.values() if text)


def _check(original: str) -> Callable[[str], str]:
    def why(text: str) -> str:
        try:
            return "" if _new(parse(text), original) else "nothing in it differs from the original"
        except ValueError as error:
            return str(error)

    return why


def _texts(answer: Answer, original: str) -> tuple[str, ...]:
    return () if answer.text is None else _new(parse(answer.text), original)


def _result(
    wanted: Sequence[tuple[QA, Mode]], found: Sequence[tuple[str, ...]], whys: Sequence[str], n: int
) -> Paraphrases:
    texts: Wordings = {}
    lacks = []
    for (item, mode), some, why in zip(wanted, found, whys, strict=True):
        texts.setdefault(item.id, {})[mode] = some
        if len(some) < n:
            lacks.append(Lack(id=item.id, mode=mode, wanted=n, found=len(some), why=why))
    return Paraphrases(texts=texts, lacks=tuple(lacks))
