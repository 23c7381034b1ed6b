"""What every encoder is: it takes texts, refuses those that it cannot read whole, and gives latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.latents.encoder_specs import EncoderSpec


class Encoder(nn.Module, ABC):
    """From B prompts to latents (B, M, d_z).

    Attributes:
        width: d_z.
        sizes: the M it serves, ascending.
        most: bytes or tokens of a text that it can read.
    """

    unit = "tokens"

    def __init__(self, spec: EncoderSpec, most: int) -> None:
        super().__init__()
        self.width, self.sizes, self.most = spec.width, spec.vectors, most

    def forward(self, prompts: Sequence[str], vectors: int | None = None) -> Float[Tensor, "B M d_z"]:
        """The latents of some prompts.

        Args:
            prompts: the texts, context and question.
            vectors: M, up to the largest of `sizes`; None = that one.

        Returns:
            (B, M, d_z), each row independent of the others.

        Raises:
            StepwellError: an empty text, one that is too long, no text at all, an M that is not served.
        """
        vectors = self.sizes[-1] if vectors is None else vectors
        if not 1 <= vectors <= self.sizes[-1]:
            raise StepwellError(
                f"{vectors} vectors are asked of an encoder of 1 to {self.sizes[-1]}",
                "give the encoder more `vectors` and train it again, or ask for fewer",
            )
        return self.read([self._checked(place, text) for place, text in enumerate(_texts(prompts))], vectors)

    def prompt(self, context: str, question: str) -> str:
        """The text of one item, its context cut at the end where it would be too long; the question is whole.

        Raises:
            StepwellError: the question alone is too long.
        """
        return fitted(context, question, limit=self.most, length=lambda text: len(self.ids(text)))

    def sent(self, vectors: int) -> int:
        """How many of M vectors differ, and so have to go over the wire."""
        return vectors

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """The bytes or tokens of a text, as they are counted against `most`."""

    @abstractmethod
    def read(self, rows: list[list[int]], vectors: int) -> Float[Tensor, "B M d_z"]:
        """The latents of texts that `ids` gave."""

    def _checked(self, place: int, text: str) -> list[int]:
        ids = self.ids(text) if text.strip() else []
        if not ids:
            raise StepwellError(f"prompt {place} is empty", "give each prompt a text: leave the item out")
        if len(ids) > self.most:
            raise StepwellError(
                f"prompt {place} has {len(ids)} {self.unit}, and the encoder reads {self.most}",
                "build it with `Encoder.prompt`, which cuts the context and never the question, or raise the limit",
            )
        return ids


def fitted(context: str, question: str, *, limit: int, length: Callable[[str], int]) -> str:
    """Context, line break, question; the context's end is cut until `length` of the whole is at most `limit`.

    Args:
        context: may be empty.
        question: is never cut.
        limit: the greatest length.
        length: of a text, such as bytes or tokens; it should not fall as a text grows.

    Raises:
        StepwellError: the question alone is too long.
    """

    def text(characters: int) -> str:
        return f"{context[:characters]}\n{question}" if characters else question

    if length(question) > limit:
        raise StepwellError(
            f"the question alone has a length of {length(question)}, and {limit} is the limit: {question[:60]!r}",
            "raise the limit, or leave the item out: the question is never cut",
        )
    if length(text(len(context))) <= limit:
        return text(len(context))
    kept = bisect_right(range(1, len(context)), limit, key=lambda characters: length(text(characters)))
    # A tokenizer may merge across the cut, so that one character more is now and then one token less.
    while length(text(kept)) > limit:
        kept -= 1
    return text(kept)


def _texts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise StepwellError(
            f"an encoder reads a list of texts, not {type(prompts).__name__} of "
            f"{', '.join(sorted({type(each).__name__ for each in prompts})) or 'nothing'}",
            "give the prompts only, as texts",
        )
    return list(prompts)
