"""A chat template taken apart: what it writes around the user's words, before an answer, and at an answer's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from stepwell.errors import StepwellError

MARK = "\u241fwords\u241f"
"""Stands for what somebody says while a chat template is taken apart."""
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""For templates that would write today's date (Llama 3), or leave it to the model to think first (Qwen 3)."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A template's texts.

    Attributes:
        header: before an answer.
        before: before the user's words, BOS included.
        after: after the user's words.
        eos: the token right after an answer; None where that is no special one.
    """

    header: str
    before: str = ""
    after: str = ""
    eos: int | None = None


def chat_frame(tokenizer: Any) -> Frame:
    """The frame of a tokenizer's chat template, for one turn of the user and one answer.

    Raises:
        StepwellError: no template, one that cannot be used, or one that changes the words or writes them twice.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise StepwellError(
            "the tokenizer has no chat template", "set `template: plain`, or choose a model that was taught to chat"
        )
    user = {"role": "user", "content": MARK}
    said = _rendered(tokenizer, [user], reply=False)
    asked = _rendered(tokenizer, [user], reply=True)
    answered = _rendered(tokenizer, [{**user, "content": "?"}, {"role": "assistant", "content": MARK}], reply=False)
    if said.count(MARK) != 1 or answered.count(MARK) != 1 or not asked.startswith(said):
        raise StepwellError(
            "the chat template does not write a turn's words once and as they are, with the answer's header after them",
            "set `template: plain`",
        )
    before, after = said.split(MARK)
    # Where the end of the user's turn is all the header there is (Mistral), it is the anchor.
    header, after = (asked[len(said) :], after) if len(asked) > len(said) else (after, "")
    end = encoded(tokenizer, answered.split(MARK)[1])[:1]
    eos = end[0] if end and end[0] in special_tokens(tokenizer) else None
    return Frame(header=header, before=before, after=after, eos=eos)


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, reply: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=reply, tokenize=False, **FIXED)
    except TemplateError as error:
        raise StepwellError(f"the chat template cannot be used: {error}", "set `template: plain`") from error


def encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text as it stands; special ones that it names are special ones."""
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no words."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = getattr(tokenizer, "all_special_ids", ())
    return frozenset({*named, *(number for number, token in added.items() if token.special)})


def end_tokens(backbone: Any) -> frozenset[int]:
    """Tokens with which the model may end a text or a turn."""
    # A chat model may end its turn with another token than its texts: generation_config names them all.
    config = getattr(getattr(backbone, "model", None), "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    named = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in [*named, backbone.tokenizer.eos_token_id] if end is not None)
