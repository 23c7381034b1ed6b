"""The linter of fine-tuning data: what a training on it would learn that nobody meant, each with an example.

It looks at the rows that would be trained on, not at how they were made: a fault in the making shows in them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from stepwell.audit.data import Finding
from stepwell.errors import StepwellError
from stepwell.objectives import IGNORE
from stepwell.sft.conversations import Conversation
from stepwell.sft.overlap import Overlap, words
from stepwell.sft.packing import PADDING, Batch, Corpus, first_fit_decreasing
from stepwell.sft.render import ChatFormat, Rendered

__all__ = ["CODES", "Finding", "lint"]

CODES: Mapping[str, str] = MappingProxyType(
    {
        "cannot-render": "the chat template refuses the conversation",
        "special-in-text": "a text holds a special token of the model by its name: it would end or begin a turn",
        "bos-twice": "the token that begins a text is there twice in a row",
        "end-not-supervised": "the token that ends an answer is not learnt: the model would not stop",
        "prompt-trained": "tokens of what is asked are learnt",
        "pads-in-loss": "padding is learnt",
        "response-truncated": "an answer does not fit into the limit of tokens",
        "nothing-supervised": "no token of the conversation is learnt",
        "duplicate": "an earlier conversation has the same words",
        "evaluation-overlap": "an item of an evaluation set is in it, whole or a run of 13 words",
        "template-differs": "evaluation would ask with other tokens than those that the answer is trained after",
    }
)
"""What each finding means, in the order of the report."""
ROWS = 16
SHOWN = 60
"""Characters of a text in an example."""


def lint(
    conversations: Sequence[Conversation],
    form: ChatFormat,
    *,
    max_tokens: int,
    evaluation: Mapping[str, str] | None = None,
    evaluation_form: ChatFormat | None = None,
    batches: Iterable[Batch] | None = None,
) -> list[Finding]:
    """Every kind of fault in conversations as they would be trained on; an empty list where there is none.

    Args:
        conversations: the training set.
        form: of the model.
        max_tokens: of a row.
        evaluation: the texts that must not be in the training set, by id.
        evaluation_form: how the evaluation asks; None = by `form`.
        batches: what would be trained on, with `examples` counting the conversations that fit, in their order; None =
            packed here as the training packs them.
    """
    found = _Found()
    _duplicates(conversations, found)
    if evaluation:
        _overlaps(conversations, Overlap.of(evaluation), found)
    rendered = _rendered(conversations, form, max_tokens, found)
    whole = {name: made for name, made in rendered.items() if not made.truncated and any(made.supervised[1:])}
    if whole:
        corpus = Corpus.joined(whole, {})
        _trained(conversations, corpus, _packed(corpus, max_tokens) if batches is None else batches,
                 form, evaluation_form or form, found)  # fmt: skip
    return found.findings(len(conversations))


@dataclass
class _Found:
    """code -> id -> what was found."""

    by_code: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, code: str, name: str, example: str) -> None:
        self.by_code[code].setdefault(name, example)

    def findings(self, of: int) -> list[Finding]:
        made = []
        for code in CODES:
            if each := self.by_code.get(code):
                example = "{}: {}".format(*next(iter(each.items())))
                made.append(Finding(code=code, count=len(each), of=of, items=tuple(each), example=example))
        return made


def _duplicates(conversations: Sequence[Conversation], found: _Found) -> None:
    seen: dict[str, str] = {}
    for conversation in conversations:
        key = " ".join(words("\n".join(message["content"] for message in conversation.messages)))
        first = seen.setdefault(key, conversation.id)
        if key and first != conversation.id:
            found.add("duplicate", conversation.id, f"same as {first}: {_short(conversation.asked)}")


def _overlaps(conversations: Sequence[Conversation], overlap: Overlap, found: _Found) -> None:
    for conversation in conversations:
        for message in conversation.messages:
            if (item := overlap.find(message["content"])) is not None:
                found.add("evaluation-overlap", conversation.id, f"{item} in {_short(message['content'])}")
                break


def _rendered(
    conversations: Sequence[Conversation], form: ChatFormat, max_tokens: int, found: _Found
) -> dict[str, Rendered]:
    made: dict[str, Rendered] = {}
    for conversation in conversations:
        for message in conversation.messages:
            ids = form.tokenizer.encode(message["content"], add_special_tokens=False)
            if special := form.specials.intersection(ids):
                name = form.decode([min(special)])
                found.add("special-in-text", conversation.id, f"{name} in {_short(message['content'])}")
        try:
            made[conversation.id] = each = form.render(conversation, max_tokens)
        except StepwellError as error:
            found.add("cannot-render", conversation.id, error.cause)
            continue
        if each.truncated:
            answer = _short(conversation.answers[-1])
            found.add("response-truncated", conversation.id, f"more than {max_tokens} tokens: {answer}")
        elif not any(each.supervised[1:]):
            found.add("nothing-supervised", conversation.id, _short(conversation.asked))
    return made


def _packed(corpus: Corpus, max_tokens: int) -> Iterator[Batch]:
    rows = first_fit_decreasing(corpus.lengths, max_tokens)
    return (corpus.batch(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS))


def _trained(
    conversations: Sequence[Conversation],
    corpus: Corpus,
    batches: Iterable[Batch],
    form: ChatFormat,
    asking: ChatFormat,
    found: _Found,
) -> None:
    by_name = {conversation.id: conversation for conversation in conversations}
    for batch in batches:
        learnt = batch.labels != IGNORE
        for row in range(len(batch.ids)):
            ids, numbers, flags = batch.ids[row].tolist(), batch.examples[row].tolist(), learnt[row].tolist()
            parts: dict[int, tuple[list[int], list[bool]]] = defaultdict(lambda: ([], []))
            for number, token, flag in zip(numbers, ids, flags, strict=True):
                parts[number][0].append(token)
                parts[number][1].append(flag)
            padding = parts.pop(PADDING, ([], []))[1]
            for number, (tokens, supervised) in parts.items():
                _example(by_name[corpus.names[number]], tokens, supervised, form, asking, found)
            if any(padding):
                last = corpus.names[max(parts, key=numbers.index)]
                found.add("pads-in-loss", last, f"{sum(padding)} padded columns after it are learnt")


def _example(
    conversation: Conversation,
    ids: list[int],
    supervised: list[bool],
    form: ChatFormat,
    asking: ChatFormat,
    found: _Found,
) -> None:
    name, bos = conversation.id, getattr(form.tokenizer, "bos_token_id", None)
    if bos is not None and ids[:2] == [bos, bos]:
        found.add("bos-twice", name, f"begins with {form.decode(ids[:6])!r}")
    end = 0
    for place, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        prompt = asking.prompt(conversation.messages[:place])
        own = prompt if asking is form else form.prompt(conversation.messages[:place])
        if ids[: len(prompt)] != prompt:
            theirs, ours = form.decode(prompt)[-SHOWN:], form.decode(ids[: len(own)])[-SHOWN:]
            found.add("template-differs", name, f"trained after {ours!r}, asked with {theirs!r}")
        # What is asked ends where the model itself would be asked, by whichever template it was trained.
        begin = len(own)
        if any(supervised[end:begin]):
            first = supervised.index(True, end)
            found.add("prompt-trained", name, f"learnt: {form.decode(ids[first:begin])[:SHOWN]!r}")
        end = next((at + 1 for at in range(begin, len(ids)) if ids[at] in form.stops), len(ids))
        if ids[end - 1] not in form.stops or not supervised[end - 1]:
            found.add("end-not-supervised", name, f"the answer ends {form.decode(ids[max(begin, end - 12) : end])!r}")


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
