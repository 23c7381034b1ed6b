"""Causal tracing: which state, put from one question's run into another's, brings the answer back?

Meng et al. 2022 (arXiv 2202.05262) with another corruption: instead of noise, the question is asked about the other
person, for whom the other option is right, so that every column keeps its place. At each layer and position the clean
run's state is put in, and everything that follows is computed anew: later thoughts, later written steps, the answer.
effect = (patched - corrupt) / (clean - corrupt), in probabilities of the clean question's answer among the two options.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.analysis.features import columns_of, gathered, patched
from stepwell.answering import Read, carried_on, decoded, margins, read_of
from stepwell.decode import right_padded
from stepwell.latents.thoughts import Batch, Thoughts
from stepwell.tasks.prosqa.reading import Reader, TextReader

Role = Literal["prompt", "reasoning", "answer"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where states are put in: columns (B, C) counted over everything cached, -1 = none.

    Attributes:
        number: orders the places of a set.
        stage: what is computed anew: the prompt, the thoughts from `index` on, written step `index`, or the answer.
    """

    number: int
    name: str
    role: Role
    stage: Literal["prompt", "thought", "step", "answer"]
    index: int
    columns: Tensor

    @property
    def rows(self) -> Tensor:
        """(B,) whether a row has this place."""
        return (self.columns >= 0).any(1)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Probabilities (B,) with one layer and place patched; NaN where a row has no such place."""

    layer: int
    place: Place
    probability: Tensor


def effect(clean: float, corrupt: float, patched: float, smallest_gap: float = 0.0) -> float | None:
    """Share of the corruption that a patch undoes; None where clean - corrupt is not above `smallest_gap` (or 0)."""
    gap = clean - corrupt
    return (patched - corrupt) / gap if gap > max(0.0, smallest_gap) else None


class Tracer:
    """A batch of clean questions and the same batch about the other person, read by one model.

    Args:
        model: in evaluation mode.
        readers: of the clean and of the corrupt questions; the right option is the clean question's in both.
        clean, corrupt: the batches, equal but for the person who is asked about.
        steps: positions of written steps, at most.
        decode: let both runs, and every patched one, write their steps first; without, the options follow at once.

    Attributes:
        clean, corrupt: (B,) probabilities of the right option in both runs.
        places: what can be patched.
    """

    @torch.no_grad()
    def __init__(
        self, model: Thoughts, readers: tuple[Reader, Reader], clean: Batch, corrupt: Batch, *, steps: int,
        decode: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.readers, self.batches, self.decode = model, readers, (clean, corrupt), decode
        prompt, _ = model.placed(clean)
        self.prompt_columns, device = prompt.shape[1], prompt.device
        rows = len(prompt)
        self.chain = model.chain(corrupt)
        read = [self._clean_prompt(rows, device), self._after_thoughts(len(self.chain.caches) - 1, nullcontext())]
        self.corrupt_read = read[1]
        written = [self._written(read[side], side, [()] * rows) for side in (0, 1)]
        columns = columns_of(range(self.prompt_columns, self.prompt_columns + max(map(len, written[0]))), rows, device)
        with gathered(model.backbone, columns) as found:
            self._continued(read[0], written[0])
        if columns.shape[1]:
            self.states = torch.cat((self.states, found.tensor), 2)
        self.corrupt_written = written[1]
        # A column a row, that of the first token of the answer, for both options' rows.
        self.answers = [self._answer_columns(some) for some in written]
        with gathered(model.backbone, self.answers[0].repeat_interleave(2, 0)) as found:
            self.clean = self._probability(read[0], 0, written[0])
        self.answer_states = found.tensor
        self.corrupt = self._probability(read[1], 1, written[1])
        self.places = tuple(self._places(written, steps))

    @torch.no_grad()
    def patch(self, layer: int, place: Place) -> Traced:
        """The corrupt run with the clean run's states at one layer and place."""
        states = self.states[:, layer].gather(
            1, place.columns.clamp(min=0)[..., None].expand(-1, -1, self.states.shape[-1])
        ) if place.stage != "answer" else self.answer_states[:, layer]  # fmt: skip
        columns = place.columns.repeat_interleave(2, 0) if place.stage == "answer" else place.columns
        put = patched(self.model.backbone, layer, columns, states)
        before: Sequence[Sequence[int]] = [()] * len(place.columns)
        if place.stage == "answer":
            with put:
                found = self._probability(self.corrupt_read, 1, self.corrupt_written)
            return Traced(layer=layer, place=place, probability=found.where(place.rows, float("nan")))
        if place.stage == "prompt":
            cache = self.model.backbone.new_cache()
            with put:
                read = read_of(self.model, self.batches[1], self.model(self.batches[1], cache=cache)[:, -1], cache)
        elif place.stage == "thought":
            read = self._after_thoughts(place.index, put)
        else:
            ends = (place.columns.amax(1) + 1 - self.prompt_columns).clamp(min=0).tolist()
            before = [ids[:end] for ids, end in zip(self.corrupt_written, ends, strict=True)]
            with put:
                read = self._continued(self.corrupt_read, before)
        more = self._written(read, 1, before)
        found = self._probability(read, 1, more)
        return Traced(layer=layer, place=place, probability=found.where(place.rows, float("nan")))

    def _clean_prompt(self, rows: int, device: torch.device) -> Read:
        cache = self.model.backbone.new_cache()
        with gathered(self.model.backbone, columns_of(range(self.prompt_columns), rows, device)) as found:
            hidden = self.model(self.batches[0], cache=cache)[:, -1]
        self.states = found.tensor
        return read_of(self.model, self.batches[0], hidden, cache)

    def _after_thoughts(self, start: int, put: AbstractContextManager[None]) -> Read:
        with put:
            hidden, cache, _ = self.model.resume(self.batches[1], self.chain, start=start)
        return read_of(self.model, self.batches[1], hidden, cache)

    def _continued(self, read: Read, written: Sequence[Sequence[int]]) -> Read:
        """Written tokens as further columns; rows with fewer are padded, and the padding is never seen."""
        if not any(written):
            return read
        ids, real = right_padded(written, device=read.hidden.device)
        count, longer = real.sum(1), replace(read, cache=read.cache.clone())
        states = carried_on(self.model.backbone, longer, ids, real)
        last = states[torch.arange(len(ids), device=ids.device), (count - 1).clamp(min=0)]
        return Read(
            hidden=torch.where((count > 0)[:, None], last, read.hidden), cache=longer.cache,
            mask=torch.cat((read.mask, real), 1), positions=read.positions + count,
        )  # fmt: skip

    def _written(self, read: Read, side: int, before: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The ids of the steps that each row goes on to write after those it has written."""
        if not self.decode:
            return [()] * len(before)
        answers = decoded(self.model, self.readers[side], self.batches[side], read, before)
        return [tuple(answer.steps[len(ids) :]) for ids, answer in zip(before, answers, strict=True)]

    def _probability(self, read: Read, side: int, steps: Sequence[Sequence[int]]) -> Tensor:
        """(B,) probability of the right option, of the two, after the steps that are still to be read."""
        return margins(self.model, self.readers[side], self.batches[side], read, steps).sigmoid()

    def _answer_columns(self, written: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[self.prompt_columns + len(ids)] for ids in written], device=self.states.device)

    def _places(self, written: Sequence[Sequence[Sequence[int]]], steps: int) -> list[Place]:
        clean, corrupt = self.batches
        mask, count = self.model.placed(clean)[0], clean.thoughts
        first = self.prompt_columns - clean.ids.shape[1] + clean.first
        column = torch.arange(self.prompt_columns, device=mask.device)
        differs = F.pad(clean.ids != corrupt.ids, (self.prompt_columns - clean.ids.shape[1], 0))
        if clean.root is not None:
            differs[:, self.prompt_columns - clean.ids.shape[1] - 1] = True
        begin, end = (
            differs.int().argmax(1, keepdim=True),
            self.prompt_columns - differs.flip(1).int().argmax(1)[:, None],
        )
        parts = {
            "before the person": mask & (column < begin),
            "the person": mask & (column >= begin) & (column < end),
            "after the person": mask & (column >= end) & (column < first),
        }
        found = [
            Place(number=n, name=name, role="prompt", stage="prompt", index=0, columns=column.where(part, -1))
            for n, (name, part) in enumerate(parts.items()) if bool(part.any())
        ]  # fmt: skip
        rows, device = len(mask), mask.device
        for k in range(count):
            where = columns_of([first + k], rows, device)
            place = Place(
                number=3 + k, name=f"thought {k + 1}", role="reasoning", stage="thought", index=k, columns=where
            )
            found.append(place)
        if (after := range(first + count, self.prompt_columns)) and count:
            where = columns_of(after, rows, device)
            place = Place(
                number=3 + count, name="end marker", role="answer", stage="thought", index=count, columns=where
            )
            found.append(place)
        for j in range(steps):
            if bool((where := self._step(written, j)).ge(0).any()):
                name, number = f"step {j + 1}", 4 + count + j
                found.append(Place(number=number, name=name, role="reasoning", stage="step", index=j, columns=where))
        return [
            *found,
            Place(
                number=4 + count + steps, name="answer begins", role="answer", stage="answer", index=0,
                columns=self.answers[1],
            ),
        ]  # fmt: skip

    def _step(self, written: Sequence[Sequence[Sequence[int]]], j: int) -> Tensor:
        """(B, C) the columns of written step j, in rows where both runs wrote it into the same columns."""
        spans = [[lines(self.readers[side], ids) for ids in some] for side, some in enumerate(written)]
        same = [
            a[j] if j < min(len(a), len(b)) and a[j] == b[j] else (0, 0)
            for a, b in zip(spans[0], spans[1], strict=True)
        ]
        widest = max(end - start for start, end in same)
        return torch.tensor(
            [
                [self.prompt_columns + start + c if start + c < end else -1 for c in range(widest)]
                for start, end in same
            ],
            device=self.states.device,
        )


def lines(reader: Reader, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where each written step begins and ends: a line of text, or a symbol."""
    if not isinstance(reader, TextReader):
        return [(place, place + 1) for place in range(len(ids))]
    ends = [place + 1 for place in range(len(ids)) if "\n" in reader.tokenizer.decode([ids[place]])]
    ends += [len(ids)] if ids and ends[-1:] != [len(ids)] else []
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
