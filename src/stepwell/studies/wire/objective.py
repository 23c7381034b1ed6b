"""What a micro-batch's losses are: one forward pass over latents, one over text, a teacher asked once an item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.answers import Asked
from stepwell.decode import right_padded
from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.losses import (
    Answers,
    Reading,
    Summed,
    TableMoments,
    Targets,
    TeacherStates,
    coins,
    first_token_ce,
    hidden_kd,
    k_token_ce,
    kd,
    manifold,
    prefix_alignment,
    reconstruction,
    teacher_forced_ce,
)
from stepwell.ranks import spans
from stepwell.shapes import embedding_table
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.params import OF_PREFIX, OF_TEXT, TAUGHT, TrainingParams
from stepwell.tasks.base import QA


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A micro-batch, split by how its examples are read.

    Attributes:
        latent: read as latents.
        text: read as text.
        number: of the micro-batch, for what is drawn in it.
        idle: which of the two, `latent` or `text`, is another part's and is read for nothing.
    """

    latent: tuple[QA, ...]
    text: tuple[QA, ...]
    number: int
    idle: Literal["latent", "text"] | None = None

    def parts(self, count: int, *, alike: bool = False) -> list[Rows]:
        """The micro-batch in so many parts, or fewer where it has not so many rows; each draws for itself.

        Args:
            count: of the parts.
            alike: each part takes the passes that the others take: one that has no row of either kind, where others
                have some, reads another's and counts nothing of it.
        """
        count = min(count, len(self.latent) + len(self.text))
        # Most of the one where there is least of the other, so that the parts have about as many rows.
        latent, text = _dealt(self.latent, count), _dealt(self.text, count)[::-1]
        parts = [Rows(latent=latent[n], text=text[n], number=self.number * count + n) for n in range(count)]
        return [part._filled(self) for part in parts] if alike else parts

    def _filled(self, whole: Rows) -> Rows:
        if whole.latent and not self.latent:
            return replace(self, latent=whole.latent[:1], idle="latent")
        if whole.text and not self.text:
            return replace(self, text=whole.text[:1], idle="text")
        return self


def _dealt(items: Sequence[QA], count: int) -> list[tuple[QA, ...]]:
    """Items in so many parts, the smaller ones first; empty ones where there are too few."""
    found = [tuple(items[span]) for span in spans(len(items), count)] if items else []
    return [()] * (count - len(found)) + sorted(found, key=len)


def answers_of(contract: Contract, targets: Sequence[Sequence[int]]) -> Answers:
    """Answers as columns, as `Contract.answer` made them; those that the contract's limit cut have no end."""
    return Answers.of(
        targets, eos=contract.eos, bos=contract.bos[0] if contract.bos else None,
        cut_at=contract.params.max_answer_tokens,
    )  # fmt: skip


def read_answers(backbone: Any, asked: Asked, answers: Answers, ids: Tensor | None = None) -> Reading:
    """What the model says where the answers are predicted, after what it was asked, in one forward pass.

    Args:
        backbone: in the state in which it is to speak.
        asked: up to the anchor.
        answers: what is supervised.
        ids: (B, A), what is read in the answers' place; None = the answers themselves.
    """
    states, targets = _states(backbone, asked, answers, ids)
    return Reading.of(backbone, states, targets)


def _states(backbone: Any, asked: Asked, answers: Answers, ids: Tensor | None) -> tuple[Tensor, Targets]:
    device, columns = asked.embeds.device, asked.embeds.shape[1]
    ids, real = (answers.ids if ids is None else ids).to(device), answers.real.to(device)
    after = asked.positions[:, -1:] + 1 + torch.arange(ids.shape[1], device=device)
    hidden = backbone(
        torch.cat((asked.embeds, backbone.embed(ids)), 1),
        positions=torch.cat((asked.positions, after.where(real, 0)), 1),
        mask=torch.cat((asked.mask, real), 1),
        cache=None if asked.cache is None else asked.cache.clone(),
        skip=columns - 1,
    )
    return hidden, answers.after(asked.mask[:, -columns:].cpu(), skip=columns - 1).to(device)


class Objective:
    """The losses of one stage.

    Args:
        wire: what is trained.
        params: of the stage.
        names: of the losses that are switched on.
        seed: of what is drawn.

    Raises:
        StepwellError: a loss on prefix vectors where the prefix is deep.
    """

    def __init__(self, wire: Wire, params: TrainingParams, names: Sequence[str], *, seed: int) -> None:
        self.wire, self.params, self.names, self.seed = wire, params, tuple(names), seed
        if wire.deep is not None and (bad := [name for name in names if name in OF_PREFIX]):
            raise StepwellError(
                f"the loss {bad[0]} is about prefix vectors, and this prefix is one of keys and values",
                f"take {', '.join(bad)} out of the losses, or give the arm an `adapter`",
            )
        self.table = TableMoments.of(embedding_table(wire.backbone)) if "manifold" in names else None
        self.teacher = TeacherStates(wire.backbone) if TAUGHT & set(names) else None

    def target(self, item: QA) -> tuple[int, ...]:
        """The tokens to be learnt, EOS among them."""
        return self.wire.contract.target(item)

    def counts(self, batches: Sequence[Rows], vectors: int) -> dict[str, int]:
        """Elements of every loss in all micro-batches of a step together."""
        latent = [item for rows in batches for item in rows.latent if rows.idle != "latent"]
        lengths = [len(self.target(item)) for item in latent]
        tokens = sum(lengths)
        found = {
            "first_token": len(latent), "teacher_forced": tokens, "kd": tokens, "hidden_kd": tokens,
            "k_token": sum(min(self.params.k, length) for length in lengths), "alignment": len(latent) * vectors,
            "manifold": len(latent) * self.wire.backbone.width,
            "reconstruction": sum(len(self._prompt(item)) for item in latent) if "reconstruction" in self.names else 0,
            OF_TEXT: sum(len(self.target(item)) for rows in batches for item in rows.text if rows.idle != "text"),
        }  # fmt: skip
        return {name: found[name] for name in self.names}

    def terms(self, rows: Rows, vectors: int, *, step: int, gold: float) -> dict[str, Summed]:
        """Every loss of a micro-batch, with a count of 0 where it has no element. Call it in `Wire.speaking`.

        Args:
            rows: the examples.
            vectors: M.
            step: for what is drawn.
            gold: p_gold of scheduled sampling; 1 = the answers' own tokens are read.
        """
        nothing = Summed(sum=torch.zeros((), device=next(self.wire.backbone.parameters()).device), count=0)
        found = dict.fromkeys(self.names, nothing)
        if rows.latent:
            for name, term in self._latent(rows, vectors, step, gold).items():
                found[name] = _nothing_of(term) if rows.idle == "latent" else term
        if rows.text:
            contract, backbone = self.wire.contract, self.wire.backbone
            asked = Asked.of_ids(backbone, [contract.text(item) for item in rows.text])
            answers = answers_of(contract, [self.target(item) for item in rows.text])
            of_text = teacher_forced_ce(read_answers(backbone, asked, answers))
            found[OF_TEXT] = _nothing_of(of_text) if rows.idle == "text" else of_text
        return found

    def learn_teacher(self, items: Sequence[QA], batch_size: int, progress: Callable[[int], None]) -> None:
        """Ask the teacher for every item, once, in batches that do not depend on the order of training.

        So what it says is the same, to the last bit, after a resume.
        """
        if self.teacher is None:
            return
        contract = self.wire.contract
        order = sorted({item.id: item for item in items}.values(), key=lambda item: (len(contract.text(item)), item.id))
        for at in range(0, len(order), batch_size):
            self._learn(order[at : at + batch_size])
            progress(min(at + batch_size, len(order)))

    def _latent(self, rows: Rows, vectors: int, step: int, gold: float) -> dict[str, Summed]:
        wire, backbone = self.wire, self.wire.backbone
        latents = wire.latents(rows.latent, vectors)
        prefix = wire.prefix(latents)
        asked = wire.asked(prefix)
        answers = answers_of(wire.contract, [self.target(item) for item in rows.latent])
        ids = None
        if gold < 1:
            with torch.no_grad():
                own = read_answers(backbone, asked, answers).predicted
            ids = answers.mixed(own, coins(gold, len(own), seed=self.seed, step=step, use=f"gold/{rows.number}"))
        reading = read_answers(backbone, asked, answers, ids)
        teacher = self._remembered(rows.latent, reading) if self.teacher is not None else None
        found: dict[str, Callable[[], Summed]] = {
            "first_token": lambda: first_token_ce(reading),
            "teacher_forced": lambda: teacher_forced_ce(reading),
            "k_token": lambda: k_token_ce(reading, self.params.k),
            "kd": lambda: kd(reading, _given(teacher), temperature=self.params.temperature),
            "hidden_kd": lambda: hidden_kd(reading, _given(teacher)),
            "alignment": lambda: prefix_alignment(_vectors(prefix), *self._embedded(rows.latent)),
            "manifold": lambda: manifold(_vectors(prefix), _given(self.table)),
            "reconstruction": lambda: self._restored(latents, rows.latent),
        }
        return {name: found[name]() for name in self.names if name in found}

    def _remembered(self, items: Sequence[QA], student: Reading) -> Reading:
        """What the teacher said of these answers; the student's own columns say nothing about it."""

        def unknown() -> Tensor:
            raise StepwellError("the teacher was not asked about an item", "call `learn_teacher` with all items first")

        return _given(self.teacher).read([item.id for item in items], student.targets, unknown)

    def _learn(self, items: Sequence[QA]) -> None:
        """Ask the model as it was before any training, reading the text, for the same answers."""
        contract, backbone = self.wire.contract, self.wire.backbone
        answers = answers_of(contract, [self.target(item) for item in items])
        with self.wire.teaching():
            asked = Asked.of_ids(backbone, [contract.text(item) for item in items])
            states, targets = _states(backbone, asked, answers, None)
            _given(self.teacher).read([item.id for item in items], targets, lambda: states)

    def _prompt(self, item: QA) -> tuple[int, ...]:
        contract = self.wire.contract
        return contract.prompt(item)[len(contract.bos) :]

    def _embedded(self, items: Sequence[QA]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, D) of the prompts that are replaced, and which are real."""
        device = next(self.wire.backbone.parameters()).device
        ids, real = right_padded([self._prompt(item) for item in items], device=device)
        return self.wire.backbone.embed(ids).detach(), real

    def _restored(self, latents: Tensor, items: Sequence[QA]) -> Summed:
        restorer: Any = _given(self.wire.restorer)
        embeds, real = self._embedded(items)
        return reconstruction(restorer(latents, embeds.shape[1]) / restorer.rms, embeds / restorer.rms, real)


def _nothing_of(term: Summed) -> Summed:
    """A loss without elements whose backward pass is made all the same."""
    return Summed(sum=0.0 * term.sum, count=0)


def _given(found: Any) -> Any:
    assert found is not None
    return found


def _vectors(prefix: Any) -> Tensor:
    assert isinstance(prefix, Tensor)
    return prefix
