"""Answers of a model to chat prompts: batched, greedy or sampled, behind a seam that vLLM fits as well.

How each answer ended is kept: one that ran into its limit is not whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stepwell.errors import StepwellError
from stepwell.grading.protocol import Decoding
from stepwell.sft.render import ChatFormat

if TYPE_CHECKING:
    from stepwell.backbone import HFBackbone
    from stepwell.grading.benchmarks import Benchmark

Stop = Literal["end", "text", "length", "positions", "no room"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """One answer.

    Attributes:
        text: without special tokens, up to a stop text.
        stop: `end` of the turn, a stop `text`, `length` (as many tokens as are allowed), `positions` (as many as the
            model knows), `no room` (the prompt alone is longer than that).
        tokens: new tokens that were written, those after a stop text too.
        looping: whether it was cut off while it repeated itself.
    """

    text: str
    stop: Stop
    tokens: int
    looping: bool = False


class Writer(Protocol):
    """The seam: whatever answers prompts."""

    @property
    def name(self) -> str:
        """What writes, for the record."""
        ...

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        """One answer for each prompt (token ids), in order; `seeds` decide what is drawn."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnWriter:
    """Our own batched decoding.

    Attributes:
        backbone: in evaluation mode.
        form: the chat format of its tokenizer, which knows what ends a turn.
        batch_size: prompts at a time. Where the device has too little memory, half as many from then on.
        between: called before each batch, such as a stage's `stop_if_asked`.
    """

    backbone: HFBackbone
    form: ChatFormat
    batch_size: int = 16
    between: Callable[[], None] | None = None
    name: str = "stepwell"

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        """See `Writer`. Raises StepwellError where the weights are not in the precision of the protocol."""
        self._check_precision(decoding)
        rooms = [self._room(prompt, decoding) for prompt in prompts]
        out = {i: Written(text="", stop="no room", tokens=0) for i, room in enumerate(rooms) if room < 1}
        waiting = sorted((i for i in range(len(prompts)) if i not in out), key=lambda i: len(prompts[i]))
        size = self.batch_size
        while waiting:
            if self.between:
                self.between()
            batch = waiting[:size]
            found = self._tried([prompts[i] for i in batch], [seeds[i] for i in batch], [rooms[i] for i in batch],
                                decoding)  # fmt: skip
            if found is None:
                if size == 1:
                    raise StepwellError(
                        f"the device has too little memory for an answer to one prompt of {len(prompts[batch[0]])} ids",
                        "lower max_tokens, or use a device with more memory",
                    )
                size = max(1, len(batch) // 2)
                continue
            out.update(zip(batch, found, strict=True))
            waiting = waiting[size:]
        return [out[i] for i in range(len(prompts))]

    def _check_precision(self, decoding: Decoding) -> None:
        found = {"torch.float32": "fp32", "torch.bfloat16": "bf16"}.get(str(self.backbone.model.dtype))
        if found != decoding.precision:
            raise StepwellError(
                f"the model computes in {found or self.backbone.model.dtype}, the protocol says {decoding.precision}",
                "load the model in the protocol's precision, or change the protocol for all results",
            )

    def _room(self, prompt: Sequence[int], decoding: Decoding) -> int:
        """Tokens that may follow. The last one is never read, and needs no position."""
        most = self.backbone.max_positions
        return decoding.max_tokens if most is None else min(decoding.max_tokens, most - len(prompt) + 1)

    def _tried(
        self, prompts: list[Sequence[int]], seeds: list[int], rooms: list[int], decoding: Decoding
    ) -> list[Written] | None:
        """The answers of a batch; None where the memory of the device was too small for it."""
        import torch

        from stepwell.decode import Sampling, greedy_prompts, sampled_prompts
        from stepwell.memory import is_out_of_memory

        options: dict[str, Any] = {"stop": self.form.stops, "limit": rooms, "batch_size": len(prompts)}
        try:
            if decoding.temperature == 0:
                found = greedy_prompts(self.backbone, prompts, **options)
            else:
                drawn = Sampling(temperature=decoding.temperature, top_p=decoding.top_p, seeds=seeds)
                found = sampled_prompts(self.backbone, prompts, sampling=drawn, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is None:
            # Outside of the handler: the error holds the tensors of the batch as long as it is handled.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return None
        return [
            as_written(self.form, one.ids, one.stopped, room < decoding.max_tokens, decoding)
            for one, room in zip(found, rooms, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answers to a benchmark.

    Attributes:
        written: (item id, number of the answer) -> answer.
        by: what wrote them.
    """

    written: Mapping[tuple[str, int], Written]
    by: str

    @property
    def texts(self) -> dict[str, list[str]]:
        """The answers to each item, by number: what `grade` takes."""
        out: dict[str, list[str]] = {}
        for (name, _), one in sorted(self.written.items()):
            out.setdefault(name, []).append(one.text)
        return out

    @property
    def stops(self) -> dict[tuple[str, int], str]:
        """How each ended: what `grade` takes."""
        return {key: one.stop for key, one in self.written.items()}


def answer(benchmark: Benchmark, form: ChatFormat, decoding: Decoding, by: Writer) -> Answers:
    """Put every question of a benchmark to a model, in its own chat format, `samples` times.

    The same items give the same samples, whichever others are asked beside them, and in whatever batches.
    """
    asked = [(question, number) for question in benchmark.questions for number in range(decoding.samples)]
    prompts = {question.id: form.prompt(question.messages) for question in benchmark.questions}
    seeds = [seed_of(decoding.seed, question.id, number) for question, number in asked]
    found = by.write([prompts[question.id] for question, _ in asked], seeds, decoding)
    keys = [(question.id, number) for question, number in asked]
    return Answers(written=dict(zip(keys, found, strict=True)), by=by.name)


def seed_of(seed: int, name: str, number: int) -> int:
    """The seed of one answer, below 2**32, from the protocol's seed, the item's id and the number of the answer."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{number}".encode()).digest()[:4], "big")


def loops(ids: Sequence[int], *, longest: int = 64, times: int = 3) -> bool:
    """Whether ids end in the same run of up to `longest` tokens, `times` times in a row."""
    for period in range(1, min(longest, len(ids) // times) + 1):
        if all(ids[-i] == ids[-i - period] for i in range(1, (times - 1) * period + 1)):
            return True
    return False


def as_written(form: ChatFormat, ids: Sequence[int], stopped: bool, cramped: bool, decoding: Decoding) -> Written:
    """One answer from the ids that were written; `cramped`: it had less room than the protocol allows."""
    text = form.tokenizer.decode(list(ids), skip_special_tokens=True)
    ends = [place for stop in decoding.stop if (place := text.find(stop)) >= 0]
    one = Written(text=text, stop="end", tokens=len(ids))
    if ends:
        return replace(one, text=text[: min(ends)], stop="text")
    if stopped:
        return one
    return replace(one, stop="positions" if cramped else "length", looping=loops(ids))
