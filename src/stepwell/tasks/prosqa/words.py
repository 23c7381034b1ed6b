"""The words of ProsQA: its names, recovered from the official data, and a tokenizer of one token a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from stepwell.errors import StepwellError

_PERSONS = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
_CONCEPTS = (
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus "
    "kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus "
    "vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus"
)

PERSONS = tuple(_PERSONS.split())
"""The 17 persons of the official sets."""

CONCEPTS = tuple(_CONCEPTS.split())
"""The 38 concepts ("species") of the official sets."""

SPECIAL = ("<pad>", "<eos>", "<|start-latent|>", "<|latent|>", "<|end-latent|>")
PADDING, END = "<pad>", "<eos>"
GRAMMAR = ("\n", "###", ".", "?", "Every", "Is", "is", "a", "or")

_TOKEN = re.compile(r"<\|?[a-z-]+\|?>|###|\n|[.?]|[^\s.?<]+|\S")
_NO_SPACE_BEFORE = frozenset((".", "?", "\n", *SPECIAL))


def is_person(symbol: str) -> bool:
    """Persons are written with a capital, concepts without."""
    return symbol[:1].isupper()


def names_of(symbols: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The persons and the concepts, each sorted, among the `idx_to_symbol` lists of some items."""
    names = {name for listed in symbols for name in listed}
    return tuple(sorted(filter(is_person, names))), tuple(sorted(name for name in names if not is_person(name)))


class WordTokenizer:
    """One token a word, for models trained from scratch on ProsQA text; `decode` restores what `encode` read.

    Args:
        persons, concepts: the names to know, the official ones where not given.
    """

    def __init__(self, persons: Sequence[str] = PERSONS, concepts: Sequence[str] = CONCEPTS) -> None:
        self.tokens: tuple[str, ...] = (*SPECIAL, *GRAMMAR, *persons, *concepts)
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pad_token_id(self) -> int:
        """The id of padding."""
        return self._ids[PADDING]

    @property
    def eos_token_id(self) -> int:
        """The id that ends a sequence."""
        return self._ids[END]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added at either end.

        Raises:
            StepwellError: a word is not in the vocabulary; it is named.
        """
        words = _TOKEN.findall(text)
        try:
            return [self._ids[word] for word in words]
        except KeyError as unknown:
            raise StepwellError(
                f"the word {unknown.args[0]!r} is not in the vocabulary of {len(self)} words",
                "use data over the official vocabulary, or build the tokenizer with the names of the data",
            ) from None

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids, spaced as ProsQA writes it."""
        text, fresh = "", True
        for number in ids:
            token = self.tokens[number]
            if skip_special_tokens and token in SPECIAL:
                continue
            text += token if fresh or token in _NO_SPACE_BEFORE else f" {token}"
            fresh = token == "\n" or token in SPECIAL
        return text
