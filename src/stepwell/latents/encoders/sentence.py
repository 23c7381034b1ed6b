"""The encoder `sentence`: a frozen sentence encoder reads the text, and only what is put on top of it is trained.

A tokenizer of another model gives every word another's embedding, and nothing would fail: so the two are compared, and
trained weights remember which sentence encoder they stood on.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepwell.backbone import SentenceEncoder
from stepwell.decode import right_padded
from stepwell.errors import StepwellError
from stepwell.latents.encoder_specs import Queries, SentenceSpec
from stepwell.latents.encoders.base import Encoder
from stepwell.latents.encoders.pooling import Projection, QueryPooling, seeded

# Tables are rounded up to multiples of 64 or 128, and some have rows to spare: 2 % of Phi-2's.
SPARE_ROWS = 0.1


class SentenceLatents(Encoder):
    """A frozen sentence encoder, and its vector M times, or learned queries over the states of its tokens.

    The sentence encoder is not a part of this module: it is in fp32, takes no gradient, and is not saved. The buffer
    `source` (sha256 of its vocabulary and weights) is, and weights that were trained on another are refused.

    Args:
        spec: pooling and sizes.
        sentence: the encoder.
        seed: of the weights here.

    Raises:
        StepwellError: the tokenizer is of another model.
    """

    source: Tensor

    def __init__(self, spec: SentenceSpec, sentence: SentenceEncoder, *, seed: int = 0) -> None:
        check_tokenizer(sentence, spec.model)
        super().__init__(spec, sentence.most_tokens or 10**9)
        sentence.model.requires_grad_(False).eval()
        self.sentence = sentence
        table = sentence.model.get_input_embeddings().weight
        width = sentence.model.config.hidden_size
        with seeded(seed):
            self.pooling = None
            if isinstance(spec.pooling, Queries):
                self.pooling = QueryPooling(spec.pooling, width, spec.vectors[-1])
                width = spec.pooling.inner
            self.project = Projection(width, spec.width)
        self.register_buffer("source", torch.tensor(list(_digest(sentence)), dtype=torch.uint8))
        self.to(table.device)

    @classmethod
    def load(cls, spec: SentenceSpec, *, seed: int = 0, device: str = "auto") -> SentenceLatents:
        """The encoder with the model that the spec names. Raises as `SentenceEncoder.load` and the class."""
        return cls(spec, SentenceEncoder.load(spec.model, device=device), seed=seed)

    def sent(self, vectors: int) -> int:
        """One, where all M are the same."""
        return vectors if self.pooling is not None else 1

    def ids(self, text: str) -> list[int]:
        """Its tokens, special ones among them."""
        return list(self.sentence.tokenizer(text, verbose=False)["input_ids"])

    def read(self, rows: list[list[int]], vectors: int) -> Float[Tensor, "B M d_z"]:
        """The latents of some tokens."""
        dtype = self.project.dtype
        states, mask = self.states(rows)
        if self.pooling is not None:
            return self.project(self.pooling(states.to(dtype), mask, vectors))
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.project(mean.to(dtype))[:, None].expand(-1, vectors, -1)

    @torch.no_grad()
    def states(self, rows: list[list[int]]) -> tuple[Float[Tensor, "B T W_s"], Bool[Tensor, "B T"]]:
        """Last hidden states of some tokens in fp32, and which of them are real."""
        # Padding by the tokenizer's own token, by which some models tell where positions begin.
        filler = self.sentence.tokenizer.pad_token_id or 0
        ids, mask = right_padded(rows, device=self.source.device, filler=filler)
        with torch.autocast(self.source.device.type, enabled=False):
            return self.sentence.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # The frozen encoder is no part of this module, but has to be where it is; never in its precision.
        super()._apply(fn, recurse)
        self.sentence.model.to(self.source.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        held = state_dict.get(f"{prefix}source")
        if held is not None and not torch.equal(held.to(self.source.device), self.source):
            raise StepwellError(
                "these latents were trained on another sentence encoder, or with another tokenizer: "
                f"{bytes(held.tolist()).hex()[:12]}, not {bytes(self.source.tolist()).hex()[:12]}",
                "name the sentence encoder that they were trained on",
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


def check_tokenizer(sentence: SentenceEncoder, name: str) -> None:
    """Refuse a tokenizer that is of another model than the one it came with.

    It is, where it has ids beyond the embeddings, where more than a tenth of the embeddings have no token, and where
    the two say otherwise which token is padding.

    Raises:
        StepwellError: naming what does not fit.
    """
    rows = sentence.model.get_input_embeddings().weight.shape[0]
    largest = max(sentence.tokenizer.get_vocab().values(), default=-1)
    pads = sentence.model.config.get_text_config().pad_token_id, sentence.tokenizer.pad_token_id
    why = ""
    if not rows * (1 - SPARE_ROWS) <= largest + 1 <= rows:
        why = f"its largest id is {largest}, and the model has {rows} embeddings"
    elif None not in pads and pads[0] != pads[1]:
        why = f"it pads by token {pads[1]}, and the model by token {pads[0]}"
    if why:
        raise StepwellError(
            f"the tokenizer of the sentence encoder is of another model: {why}",
            "put the tokenizer that the model was trained with into the folder",
            path=name,
        )


def _digest(sentence: SentenceEncoder) -> bytes:
    digest = hashlib.sha256()
    for token, number in sorted(sentence.tokenizer.get_vocab().items()):
        digest.update(f"{number} {token}\0".encode("utf-8", "surrogatepass"))
    for key, tensor in sentence.model.state_dict().items():
        # Viewed as bytes, so that every precision has some.
        digest.update(key.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
