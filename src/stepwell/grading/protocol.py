"""How answers came about and were scored, as one fingerprint: results of different ones are never compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stepwell.chat import Message
from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.spec import Spec

Part = Literal["template", "decoding", "scorer", "items"]
PARTS: tuple[Part, ...] = ("template", "decoding", "scorer", "items")


class Decoding(Spec):
    """How answers are written. How many at a time, and on what device, is no part of it.

    Attributes:
        temperature: 0 = the most likely token each time.
        top_p: share of the probability that tokens are drawn from.
        max_tokens: length of an answer at most, in tokens.
        samples: answers to each item.
        seed: of what is drawn.
        stop: texts that end an answer, beside the token that ends a turn; they are cut off.
        precision: of the computation, whatever the weights were stored in.
    """

    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)
    samples: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples need a temperature above 0: greedy ones are all the same")
        if "" in self.stop:
            raise ValueError("an empty stop text would end every answer at once")
        return self


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that has to be the same for two results to be compared.

    Attributes:
        template: fingerprint of the chat format that items are put to the model in.
        decoding: how answers are written.
        scorer: name and version of the scorer, such as `final-number/1`.
        items: fingerprint of the items, see `items_fingerprint`.
    """

    template: str
    decoding: Decoding
    scorer: str
    items: str

    def literals(self) -> dict[str, Any]:
        """The parts, as JSON knows them."""
        return {**asdict(self), "decoding": self.decoding.model_dump(mode="json")}

    @classmethod
    def of_literals(cls, found: Mapping[str, Any]) -> Self:
        """What `literals` gave. Raises KeyError, TypeError or ValueError where it is something else."""
        known = {part: found[part] for part in PARTS}
        return cls(**{**known, "decoding": Decoding.model_validate(known["decoding"])})

    def fingerprint(self) -> str:
        """Sha256 of the parts, 64 hex digits."""
        return fingerprint(self.literals())


def items_fingerprint(items: Iterable[tuple[str, Sequence[Message], str]]) -> str:
    """Of (id, conversation, reference) of each item: what is asked, word for word, and what is right; in any order."""
    return fingerprint(sorted([name, [dict(m) for m in messages], reference] for name, messages, reference in items))


def comparable(first: Protocol, second: Protocol, *, parts: Sequence[Part] = PARTS) -> None:
    """Refuse a comparison of results that did not come about in the same way.

    Args:
        first, second: their protocols.
        parts: what has to be the same. A reference model has its own template and its own decoding; an earlier
            checkpoint of ours has not.

    Raises:
        StepwellError: a part differs; the message names each that does.
    """
    one, other = first.literals(), second.literals()
    different = [part for part in parts if one[part] != other[part]]
    if not different:
        return
    told = "; ".join(f"{part}: {_difference(one[part], other[part])}" for part in different)
    raise StepwellError(
        f"the two results are of different protocols ({told})",
        "grade both again under one protocol: the same template, decoding, scorer and items",
    )


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict):
        return ", ".join(f"{key} {one[key]!r} and {other[key]!r}" for key in one if one[key] != other[key])
    return f"{one[:16]} and {other[:16]}"
