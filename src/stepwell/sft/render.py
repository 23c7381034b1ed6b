"""A conversation as token ids, by the model's own chat template, and which of them are the assistant's.

What the assistant says is found by differences: the template's text with an answer, less its text up to the header
that asks for one. Training and evaluation take that header from the same place, so a model is asked as it was taught.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jinja2 import TemplateError

from stepwell.chat import Message
from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.sft.conversations import Conversation

__all__ = ["ChatFormat", "Rendered"]

PROBE: tuple[Message, ...] = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One conversation as the model reads it.

    Attributes:
        ids: (T,), special tokens among them; nothing after the last supervised token.
        supervised: (T,), True where the token is the assistant's: its content and the token that ends its turn.
        truncated: something of an answer did not fit into the limit, and is missing.
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    truncated: bool

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.supervised)


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How one tokenizer writes conversations. Build one with `of`.

    Attributes:
        tokenizer: of the model.
        template: its chat template.
        stops: ids that end a turn: what the template writes after an answer, and the tokenizer's end token.
        specials: ids that no text is made of.
    """

    tokenizer: Any
    template: str
    stops: frozenset[int]
    specials: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The format of a tokenizer.

        Raises:
            StepwellError: there is no tokenizer or no chat template; or the template writes no special token after an
                answer, so that no model could learn from it where to stop, or asks otherwise than it answers.
        """
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise StepwellError(
                "the tokenizer has no chat template",
                "name a chat model, or put the template that you mean beside its tokenizer as chat_template.jinja",
            )
        added = getattr(tokenizer, "added_tokens_decoder", {})
        specials = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        form = cls(tokenizer=tokenizer, template=template, stops=frozenset(), specials=frozenset(specials))
        *_, (answer, _) = form._pieces(form._marks(PROBE, "a probe"), "a probe")
        if not (end := form._length_of_turn(answer)):
            raise StepwellError(
                "the chat template writes no special token after an answer: a model could not learn where to stop",
                "let the template write the end token after each of the assistant's messages",
            )
        stops = {answer[end - 1], tokenizer.eos_token_id} - {None}
        return cls(tokenizer=tokenizer, template=template, stops=frozenset(stops), specials=frozenset(specials))

    def render(self, conversation: Conversation, max_tokens: int) -> Rendered:
        """The ids of a conversation, of which the first `max_tokens` are kept.

        Raises:
            StepwellError: the template refuses the conversation, or writes earlier turns otherwise once there is a
                later one, so that no tokens can be said to be an answer's; or asks for an answer with another header
                than it writes before one.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        for piece, answered in self._pieces(self._marks(conversation.messages, conversation.id), conversation.id):
            end = self._length_of_turn(piece) if answered else 0
            ids += piece
            supervised += [True] * end + [False] * (len(piece) - end)
        last = max((place for place, wanted in enumerate(supervised) if wanted), default=-1) + 1
        kept = min(last, max_tokens)
        return Rendered(ids=tuple(ids[:kept]), supervised=tuple(supervised[:kept]), truncated=kept < last)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the model answers: the messages and the header of an answer, as in training.

        Raises:
            StepwellError: as `render`.
        """
        marks = [*self._marks(messages, "prompt"), (self._text(messages, "prompt", header=True), False)]
        return [number for piece, _ in self._pieces(marks, "prompt") for number in piece]

    def fingerprint(self) -> str:
        """The sha256 of all that decides how a conversation is written, the day's date (in a few templates) apart."""
        tokens = {name: str(getattr(self.tokenizer, name, None)) for name in ("bos_token", "eos_token")}
        return fingerprint(
            {"template": self.template, "stops": sorted(self.stops), "vocabulary": len(self.tokenizer), **tokens}
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens by their names."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _marks(self, messages: Sequence[Message], name: str) -> list[tuple[str, bool]]:
        """The text up to each answer and up to its end, and whether what it adds to the one before is an answer."""
        marks = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                marks.append((self._text(messages[:place], name, header=True), False))
                marks.append((self._text(messages[: place + 1], name), True))
        return marks

    def _pieces(self, marks: Sequence[tuple[str, bool]], name: str) -> Iterator[tuple[list[int], bool]]:
        """The ids that each mark adds to those before.

        They are the ones that the text as a whole has there. Only where a token would reach across the mark is the
        rest encoded by itself: when the model answers, what lies before the mark is already fixed.
        """
        before, ids = "", []
        for text, answered in marks:
            if not text.startswith(before):
                raise _not_as_asked(name, before, answered=answered)
            whole = self._encode(text)
            piece = whole[len(ids) :] if whole[: len(ids)] == ids else self._encode(text[len(before) :])
            yield piece, answered
            before, ids = text, ids + piece

    def _length_of_turn(self, answer: Sequence[int]) -> int:
        """Tokens up to the special one that ends the turn, with it; 0 where none does."""
        for end in range(len(answer), 0, -1):
            if answer[end - 1] in self.specials:
                return end
            if self.decode(answer[end - 1 :]).strip():
                return 0
        return 0

    def _encode(self, text: str) -> list[int]:
        # The template writes the special tokens itself, a first one included.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _text(self, messages: Sequence[Message], name: str, *, header: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, add_generation_prompt=header, tokenize=False
            )
        except (TemplateError, IndexError) as error:
            raise StepwellError(
                f"{name}: the chat template refuses the conversation: {error}",
                "bring its turns into the order that the template knows, or leave it out",
            ) from None


def _not_as_asked(name: str, before: str, *, answered: bool) -> StepwellError:
    if answered:
        return StepwellError(
            f"{name}: the chat template asks for an answer with {before[-40:]!r}, and does not write that before the "
            "answer that is given, so the model would be trained otherwise than it is asked",
            "mend the template: its generation prompt must be what stands before an answer",
        )
    return StepwellError(
        f"{name}: the chat template writes earlier turns otherwise once a later one follows, so that what is trained "
        "would not be what is asked",
        "give each answer a conversation of its own, with the turns before it",
    )
