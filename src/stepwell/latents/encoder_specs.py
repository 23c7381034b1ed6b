"""What turns a prompt into latents, and latents into a prefix, as data. Constructing a spec loads nothing, not torch.

An encoder reads a prompt and gives M vectors of width d_z; one encoder serves several M. How M vectors come from the
states of a text is its pooling: the means of M stretches, M learned queries, or M compression tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stepwell.spec import ModelName, Spec

Some = Annotated[int, Field(ge=1)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _check_heads(inner: int, heads: int) -> None:
    if inner % heads:
        raise ValueError(f"an inner width of {inner} cannot be shared by {heads} heads: choose a multiple")


class Queries(Spec):
    """M learned queries that attend to the states of the text (Perceiver: Jaegle et al. 2021, arXiv 2103.03206).

    Attributes:
        inner: width of the queries.
        layers: each of causal attention among the queries, attention to the states, and an MLP of 4 x inner.
        heads: of every attention; must divide `inner`.
    """

    kind: Literal["queries"] = "queries"
    inner: Some = 256
    layers: Some = 2
    heads: Some = 4

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        _check_heads(self.inner, self.heads)
        return self


class Mean(Spec):
    """Means of the states over M stretches of the text, as equal as can be (adaptive average pooling)."""

    kind: Literal["mean"] = "mean"


class Tokens(Spec):
    """The model's own states at M learned tokens that follow the text (compression tokens, as in ICAE and Gist)."""

    kind: Literal["tokens"] = "tokens"


class Vector(Spec):
    """The sentence vector itself, M times."""

    kind: Literal["vector"] = "vector"


class EncoderSpec(Spec):
    """What every encoder has.

    Attributes:
        vectors: the M it serves, ascending; the largest sizes it. One number is taken as a tuple of one.
        width: d_z.
    """

    vectors: Annotated[tuple[Some, ...], BeforeValidator(_listed), Field(min_length=1)] = (16,)
    width: Some = 256

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.vectors) != sorted(set(self.vectors)):
            raise ValueError(f"vectors are {list(self.vectors)}: give each number once, the smallest first")
        return self


class BytesSpec(EncoderSpec):
    """A transformer over the bytes of the text, trained from scratch.

    Attributes:
        inner: width of the transformer.
        layers: pre-norm, in both directions.
        heads: of each layer; must divide `inner`.
        patch: bytes a column. The layers' cost falls with it, that of their attention with its square.
        max_bytes: of a text at most. A longer one is an error: `Encoder.prompt` cuts its context beforehand.
        pooling: queries.
    """

    kind: Literal["bytes"] = "bytes"
    inner: Some = 256
    layers: Some = 4
    heads: Some = 4
    patch: Some = 1
    max_bytes: Some = 2048
    pooling: Annotated[Queries, BeforeValidator(_named)] = Queries()

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        _check_heads(self.inner, self.heads)
        return self


class SentenceSpec(EncoderSpec):
    """A sentence encoder that is frozen.

    Attributes:
        model: folder, pulled name or hub id, with mean pooling, such as sentence-transformers/all-MiniLM-L6-v2.
        pooling: `vector`, or queries over the states of its tokens.
    """

    kind: Literal["sentence"] = "sentence"
    model: ModelName
    pooling: Annotated[Annotated[Vector | Queries, Field(discriminator="kind")], BeforeValidator(_named)] = Queries()


class LMSpec(EncoderSpec):
    """The language model itself reads the text. Its weights are frozen, and trained through LoRA where that is on.

    Attributes:
        pooling: mean, queries or compression tokens. Mean pooling is the strongest of the simple ones ("No Mean
            Feat", arXiv 2510.20797).
        max_tokens: of a text at most. A longer one is an error: `Encoder.prompt` cuts its context beforehand.
    """

    kind: Literal["lm"] = "lm"
    pooling: Annotated[Annotated[Mean | Queries | Tokens, Field(discriminator="kind")], BeforeValidator(_named)] = (
        Mean()
    )
    max_tokens: Some = 512


AnyEncoder = Annotated[BytesSpec | SentenceSpec | LMSpec, Field(discriminator="kind")]
"""Any of the encoders, told apart by `kind`."""


class AdapterSpec(Spec):
    """From latents to a prefix.

    Attributes:
        inner: width of both hidden layers; None = D.
        learned_scale: whether a learned factor follows the calibration; without it the prefix of every example has
            exactly the RMS of the embedding table.
    """

    inner: Some | None = None
    learned_scale: bool = True


class DeepPrefixSpec(Spec):
    """From latents to keys and values of every layer (prefix tuning: Li & Liang 2021, arXiv 2101.00190).

    Attributes:
        inner: width of both hidden layers.
    """

    inner: Some = 512
