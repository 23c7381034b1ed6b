"""Run by `torchrun` in test_sharding: thoughts in parts beside the same thoughts whole, in float64, told as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch

from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.latents.thoughts import IGNORE, Batch, Thoughts
from stepwell.ranks import Ranks
from stepwell.recipe import Recipe
from stepwell.shapes import Shape
from stepwell.sharding import LISTS, Trained, is_part, shard, whole, whole_state
from stepwell.small import SmallConfig, SmallLM
from stepwell.train import load_weights, new_optimizers, save_weights

ROWS, COLUMNS, FIRST, THOUGHTS = 5, 11, 4, 2
LIMIT = 0.5


def thinker(architecture: str, seed: int) -> Thoughts:
    """Of a width that three processes cannot share evenly."""
    if architecture == "small":
        backbone: Any = SmallLM(SmallConfig(vocabulary=19, width=20, layers=3, heads=2, mlp_ratio=3), seed=seed)
    else:
        family, _, recomputed = architecture.partition("-")
        shape = Shape(
            architecture=cast("Any", family), vocabulary=19, width=20, layers=3, heads=2, max_positions=32, dropout=0.0
        )  # fmt: skip
        backbone = HFBackbone.from_shape(shape, seed=seed, device="cpu", gradient_checkpointing=bool(recomputed))
    return Thoughts(backbone, "continuous").double()


def batch_of(step: int) -> Batch:
    """One row has no thought, and one is padded."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 19, (ROWS, COLUMNS), generator=random)
    latent, mask = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    latent[: ROWS - 1, FIRST : FIRST + THOUGHTS] = True
    mask[1, :2] = False
    labels = ids.masked_fill(latent, IGNORE)
    labels[:, :FIRST] = IGNORE
    return Batch(ids=ids, mask=mask, latent=latent, labels=labels, first=FIRST, items=torch.arange(ROWS))


def nats(model: Thoughts, batch: Batch) -> torch.Tensor:
    """Of every column from the first thought on."""
    logits = model.backbone.logits(model(batch))[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, FIRST:].flatten(), reduction="sum")


def compared(architecture: str, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What training in parts differs by, and what it held."""
    alone, parts = thinker(architecture, 0), thinker(architecture, 0)
    told = shard(parts.backbone, ranks, "cpu")
    parts.in_parts = True
    base = getattr(parts.backbone, "base", parts.backbone)
    layers = next(getattr(base, name) for name in LISTS if hasattr(base, name))
    held_whole: list[bool] = []
    layers[2].register_forward_pre_hook(lambda *_: held_whole.append(not all(map(is_part, layers[0].parameters()))))
    recipe = Recipe(lr=1e-2, steps=4, batch_size=ROWS, weight_decay=0.1)
    one, many = Trained(alone, Ranks()), Trained(parts, ranks)
    sides = [(one, new_optimizers(alone, recipe, one)[0]), (many, new_optimizers(parts, recipe, many)[0])]
    off = {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weights": 0.0}
    for step in range(4):
        batch = batch_of(step)
        with torch.no_grad():  # a look at held-out items
            nats(parts, batch)
        losses, norms = [], []
        for trained, _ in sides:
            trained.module.train()  # only then are layers recomputed
            trained.module.zero_grad(set_to_none=True)
            own = ranks.share([batch], Batch.parts, equally=True, alike=False)[0] if trained is many else batch
            loss = nats(cast("Thoughts", trained.module), own)
            loss.backward()
            losses += trained.add_up([float(loss.detach())])
        for mine, other in zip(alone.parameters(), parts.parameters(), strict=True):
            assert mine.grad is not None and other.grad is not None
            off["gradient"] = max(
                off["gradient"], float((whole(other.grad) - mine.grad).abs().max() / mine.grad.abs().max())
            )
        for trained, optimizer in sides:
            norms.append(trained.clip(LIMIT))
            optimizer.step()
        off["loss"] = max(off["loss"], abs(losses[1] / losses[0] - 1))
        off["norm"] = max(off["norm"], abs(norms[1] / norms[0] - 1))
        if step == 1:  # go on from a checkpoint, in another model
            state, kept = many.state(), many.state_of(sides[1][1])
            parts = thinker(architecture, 7)
            shard(parts.backbone, ranks, "cpu")
            parts.in_parts = True
            many = Trained(parts, ranks)
            many.restore(state)
            sides[1] = (many, new_optimizers(parts, recipe, many)[0])
            many.restore_optimizer(sides[1][1], kept)
    for mine, other in zip(alone.state_dict().values(), whole_state(parts).values(), strict=True):
        off["weights"] = max(off["weights"], float((other - mine).abs().max()))
    save_weights(parts, folder / f"{architecture}.{ranks.rank}.safetensors")
    again = thinker(architecture, 9)
    load_weights(again, folder / f"{architecture}.{ranks.rank}.safetensors")
    read_back = all(map(torch.equal, again.state_dict().values(), whole_state(parts).values()))
    try:
        new_optimizers(parts, Recipe(lr=1e-2, muon_lr=1e-2, optimizer="muon", steps=4, batch_size=ROWS), many)
        refused = ""
    except StepwellError as error:
        refused = error.cause
    return {"off": off, "held_whole": held_whole, "told": told, "read_back": read_back, "muon": refused}


if __name__ == "__main__":
    with Ranks.joined("cpu") as joined:
        found = {name: compared(name, joined, Path(sys.argv[1])) for name in sys.argv[2:]}
        if joined.rank == 0:
            (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found))
