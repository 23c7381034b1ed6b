"""States of every layer at chosen columns: gathered in the pass that is made anyway, against that pass alone.

GPT-2-small shape from scratch, fp32, batch 8, 180 columns of question and six thoughts; states of 13 layers at nine
columns. What is gathered is compared with a pass that keeps all hidden states. Aim: at least 80% of the plain
forward's throughput.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import common
from bench_thoughts import QUICK, QUICK_SHAPE, SMALL, batch_of
from stepwell.analysis.features import columns_of, gathered
from stepwell.backbone import HFBackbone, Shape
from stepwell.latents.thoughts import Batch, Thoughts


class Work:
    """One arm, one batch: the plain pass, and the pass that is listened to."""

    def __init__(self, arm: str, backbone: HFBackbone, batch: Batch) -> None:
        self.model = Thoughts(backbone, arm, vector=backbone.embed(torch.tensor([[1]]))[0, 0])  # pyright: ignore[reportArgumentType]
        self.batch = batch
        self.chosen = list(range(batch.first - 3, batch.first + batch.thoughts))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The pass as evaluation makes it."""
        return self.model(self.batch)

    @torch.no_grad()
    def gather(self) -> Tensor:
        """The same pass, and the states (B, L + 1, C, D)."""
        where = columns_of(self.chosen, len(self.batch.ids))
        with gathered(self.model.backbone, where) as found:
            self.model(self.batch)
        return found.tensor

    @torch.no_grad()
    def keep_all(self) -> Tensor:
        """The states of a pass that keeps every layer at every column; of the arm's vector, in one pass."""
        embeds, mask, positions, _ = self.model.layout(self.batch)
        embeds = torch.where(self.batch.latent[..., None], self.model.vector, embeds)
        output = self.model.backbone.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False,
            output_hidden_states=True,
        )  # fmt: skip
        # transformers normalises the last; ours is the state before.
        return torch.stack(output.hidden_states, 1)[:, :, self.chosen]


@torch.no_grad()
def compare(work: Work) -> None:
    ours, theirs = work.gather(), work.keep_all()
    ours = torch.cat((ours[:, :-1], work.model.backbone.base.ln_f(ours[:, -1:])), 1)
    worst = float((ours - theirs).abs().max())
    common.same("states", worst < 1e-3, f"{tuple(ours.shape)}, within {worst:.1e}")


def main(arguments: Sequence[str] | None = None) -> None:
    given = common.parser(__doc__).parse_args(arguments)
    common.header("bench_features", given, arguments)
    pairs = given.pairs or (1 if given.quick else 7)
    with common.threads(given.threads):
        backbone = HFBackbone.from_shape(QUICK_SHAPE if given.quick else Shape(), device="cpu")
        batch = batch_of(QUICK if given.quick else SMALL, backbone.vocabulary).prompt()
        for arm in ("shared", "continuous"):
            work = Work(arm, backbone, batch)
            if arm == "shared":
                compare(work)
            print(f"{arm}: batch {len(batch.ids)}, {batch.ids.shape[1]} columns, states at {len(work.chosen)}")
            work.plain(), work.gather()
            found = common.in_pairs(work.plain, work.gather, pairs=pairs, kind=given.clock)
            common.show_pairs("plain / gathering", ("plain", "gathering"), found)
            common.aim("throughput while gathering, of the plain pass's", found.ratio, ">=", 0.8, meant=not given.quick)


if __name__ == "__main__":
    main()
