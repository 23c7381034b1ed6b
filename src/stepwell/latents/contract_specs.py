"""What a plan says of the prompt contract. Constructing it loads nothing, not torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stepwell.spec import Spec


class ContractParams(Spec):
    """What a plan says of the contract.

    Attributes:
        template: `chat` = the model's own chat template, one turn of the user; `plain` = text without a template.
        instruction: stands before the context; "" = none. It may hold an example with its answer, which small models
            need in order to answer briefly.
        anchor: text right before the answer, with the blank that belongs between them; None = the template's
            assistant header, or "Answer: " without a template.
        no_answer: what is to be written where a question has no answer; "" = nothing but the end.
        max_prompt_tokens: of BOS, template, instruction, context and question, the anchor not counted.
        max_answer_tokens: of an answer and its EOS, in training, and for every arm in decoding.
    """

    template: Literal["chat", "plain"] = "chat"
    instruction: str = "Answer the question with a few words taken from the context, and with nothing else."
    anchor: str | None = None
    no_answer: str = ""
    max_prompt_tokens: int = Field(default=512, ge=1)
    max_answer_tokens: int = Field(default=32, ge=2)
