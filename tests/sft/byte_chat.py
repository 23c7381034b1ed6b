"""A tokenizer of bytes with special tokens and a chat template, for tests that need no model's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, Template, TemplateError

SPECIALS = ("<s>", "<|user|>", "<|assistant|>", "<|end|>", "<pad>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@lru_cache
def compiled(template: str) -> Template:
    return Environment().from_string(template)


def refuse(text: str) -> Any:
    raise TemplateError(text)


class ByteChat:
    """256 bytes, then the special tokens, which are found in texts as real tokenizers find them."""

    bos_token, eos_token, pad_token = "<s>", "<|end|>", "<pad>"
    bos_token_id, eos_token_id, pad_token_id = 256, 259, 260
    all_special_ids = (256, 259, 260)

    def __init__(self, template: str | None = TEMPLATE) -> None:
        self.chat_template = template
        self.added_tokens_decoder = {256 + i: SimpleNamespace(special=True) for i in range(len(SPECIALS))}

    def __len__(self) -> int:
        return 256 + len(SPECIALS)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [self.bos_token_id] if add_special_tokens else []
        while text:
            special = next((i for i, name in enumerate(SPECIALS) if text.startswith(name)), None)
            if special is None:
                ids += text[0].encode()
                text = text[1:]
            else:
                ids.append(256 + special)
                text = text[len(SPECIALS[special]) :]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        made = b""
        for number in ids:
            if number < 256:
                made += bytes([number])
            elif not skip_special_tokens:
                made += SPECIALS[number - 256].encode()
        return made.decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, str]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
    ) -> str:
        assert not tokenize

        return compiled(chat_template or self.chat_template or "").render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token=self.bos_token,
            raise_exception=refuse,
        )  # fmt: skip
