"""First-order MAML and ANIL as the `Model` of `stepwell.train.Training`: a micro-batch is a task to be learnt.

Of a task, rows of one category, some are its support and the others its query. The adapter's weights go down the
support's loss for a few steps; the gradient of the query's loss at the weights so found is given to the loop as if it
were the one at the weights that it began with, which are put back bit for bit. So what the loop trains, saves and
validates is where adapting begins, never what it comes to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from stepwell.adapt.lora import LoRA
from stepwell.errors import StageFailed, StepwellError
from stepwell.objectives import IGNORE
from stepwell.sft.model import SftModel
from stepwell.sft.packing import PADDING, Batch
from stepwell.sft.recipe import Anil, Maml
from stepwell.sft.stream import mixed
from stepwell.stage import StageContext

__all__ = ["MetaModel", "head_of"]


class MetaModel(SftModel):
    """A `SftModel` whose micro-batches are tasks (Finn et al. 2017, arXiv 1703.03400; Raghu et al. 2020, 1909.09157).

    The loss of a step is that of its queries: the sum of their nats over the number of their supervised tokens, so that
    a task weighs as many tokens as its query has. Tokens of the support are adapted to, and not counted. Processes
    adapt each to its own tasks, and add up the queries' gradients. Dropout of an inner step has its own seed, that of
    the query is the micro-batch's. Where memory runs out, support and query are computed in pieces, as a micro-batch
    is by `SftModel`.

    Writes a record `meta` (nats a supervised token, of the step's tasks of all processes together): the support at the
    first weights and at the adapted ones, with the same dropout, and the query at the adapted ones.

    Args:
        lora, ctx, held_out: as for `SftModel`.
        meta: the inner loop.
        steps: optimizer steps of the training; the last one is recorded too.
        log_every: steps between two records.

    Raises:
        StepwellError: the head is all of the adapter, so that there is no body to be left alone.
    """

    def __init__(
        self,
        lora: LoRA,
        meta: Maml,
        *,
        ctx: StageContext,
        steps: int,
        log_every: int,
        held_out: Sequence[Batch] = (),
    ) -> None:
        super().__init__(lora, ctx=ctx, held_out=held_out)
        self.meta, self.steps, self.log_every = meta, steps, log_every
        self._adapting = head_of(lora, meta.head_layers) if isinstance(meta, Anil) else self._parameters
        # Of the step so far: nats before and after, and tokens.
        self._support = [0.0, 0.0, 0.0]

    def support(self, batch: Batch) -> Batch:
        """The rows of a task that it adapts to, the first ones: the stream has shuffled them."""
        return batch.rows(slice(self.meta.support_rows(len(batch.ids))))

    def learnt(self, batch: Batch) -> Batch:
        """The other rows of a task, its query."""
        return batch.rows(slice(self.meta.support_rows(len(batch.ids)), None))

    def parts(self, batch: Batch, count: int) -> list[Batch]:
        """The task as a whole: part of it would be another task."""
        if self.ctx.shard:
            raise StageFailed(
                f"a step's tasks cannot be dealt out evenly to {count} processes, which hold the model in parts and "
                "must compute equally often",
                "make `accumulation` a multiple of `devices`", stage=self.ctx.job.id,
            )  # fmt: skip
        return [batch]

    def compute(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The query's sum of nats () at the adapted weights, and its gradient there by each of the parameters.

        Raises:
            StageFailed: a task has one row, or padding among its targets; or a row does not fit into memory.
        """
        self._need_task(batch)
        with self._adapted(self.support(batch)):
            return super().compute(self.learnt(batch))

    @contextmanager
    def _adapted(self, support: Batch) -> Iterator[None]:
        """In the block the adapter has the weights that a support leads to; afterwards, whatever happened, its own."""
        before = [parameter.detach().clone() for parameter in self._adapting]
        try:
            self._descend(support)
            yield
        finally:
            with self._writing():
                for parameter, held in zip(self._adapting, before, strict=True):
                    parameter.copy_(held)

    def _descend(self, support: Batch) -> None:
        """Take the inner steps: theta <- theta - inner_lr x gradient of the support's mean nats a token."""
        tokens, first = support.supervised, 0.0
        for number in range(self.meta.inner_steps):
            seeded = _of_inner_step(support, number)
            nats, gradients = self._in_pieces(seeded, lambda pieces: self._gradients(pieces, self._adapting))
            first = first if number else float(nats)
            with self._writing():
                for parameter, gradient in zip(self._adapting, gradients, strict=True):
                    parameter.sub_(self.meta.inner_lr / tokens * gradient)
        if self._is_recorded():
            after = self._in_pieces(_of_inner_step(support, 0), self._nats)
            for place, value in enumerate((first, after, tokens)):
                self._support[place] += value

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """For writing into weights between two passes of one step."""
        with torch.no_grad():
            yield
        # Autocast keeps the half-precision copies of weights that it has made, and would go on reading them.
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _nats(self, pieces: Sequence[Batch]) -> float:
        with self._dropout(pieces[0].seed):
            return self._measured(pieces)[0]

    def _need_task(self, batch: Batch) -> None:
        if len(batch.ids) < 2:
            raise StageFailed(
                "a task of one row has nothing to adapt to, or nothing to learn from",
                "raise `batch_size` to 2 at least", stage=self.ctx.job.id,
            )  # fmt: skip
        targets = batch.labels != IGNORE
        if padded := int((targets & (batch.examples == PADDING)).sum()):
            raise StageFailed(
                f"{padded} of the {int(targets.sum())} targets of a task are padding, which would be learnt in no time "
                "and make the loss look small",
                f"set the labels of padding to {IGNORE}, as `Corpus.batch` does", stage=self.ctx.job.id,
            )  # fmt: skip

    def _is_recorded(self) -> bool:
        """Whether the step that is under way is."""
        step = int(self._module.steps) + 1
        return step % self.log_every == 0 or step == self.steps

    def stepped(self, loss: float) -> None:
        """Write the record of the step, where it is one of those; then as `SftModel`."""
        if self._is_recorded():
            sums = [*self._support, float(self._meter.supervised)]
            before, after, tokens, query_tokens = self.ctx.ranks.add_up((), sums)
            self.ctx.write(
                "meta", step=int(self._module.steps) + 1, support_before=before / tokens, support_after=after / tokens,
                query=loss, support_tokens=int(tokens), query_tokens=int(query_tokens),
            )  # fmt: skip
        self._support = [0.0, 0.0, 0.0]
        super().stepped(loss)


def head_of(lora: LoRA, layers: int) -> tuple[nn.Parameter, ...]:
    """The adapter's weights in the last so many of the layers that it is on.

    Raises:
        StepwellError: it is on no other layers.
    """
    # A site is named by its path: the first number in it is that of the layer, as in model/layers/3/mlp/up_proj.
    layer_of = {site: next(int(part) for part in site.split("/") if part.isdigit()) for site in lora.sites}
    found = sorted(set(layer_of.values()))
    if layers >= len(found):
        raise StepwellError(
            f"the adapter is on {len(found)} layers, and {layers} of them are to be the head: there is no body left",
            "lower `head_layers`, or take `kind: maml`, which adapts all of them",
        )
    head = found[-layers:]
    return tuple(p for site, pair in lora.sites.items() if layer_of[site] in head for p in pair.parameters())


def _of_inner_step(support: Batch, number: int) -> Batch:
    """With a seed of its own: an inner step must not see the query's dropout, nor that of another step."""
    return replace(support, seed=mixed(support.seed, 1 + number))
