"""The shipped plan `squeeze`, so small that all its stages run in seconds; what it is made of stays as shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from contract_models import letters
from stepwell.plan import Plan, load_plan

WIDTH, DIMS = 32, 8
SIZES = (
    "engine=inline",
    "threads_per_job=1",
    "device=cpu",
    f"axes.dims=[{DIMS}]",
    "data.source={kind: generated, sentences: 4}",
    "data.n_train=24",
    "data.n_held=4",
    "data.n_test=6",
    "model.contract={instruction: Be brief., max_prompt_tokens: 370, max_answer_tokens: 6}",
    "text.batch_size=4",
    "restore.arms.residual.recipe={steps: 12, batch_size: 32, lr: 1e-3}",
    "restore.checkpoint_every=5",
    "restore.log_every=2",
    "answer.batch_size=4",
    "refine.recipe={objective: reading, steps: 3, batch_size: 2, lr: 1e-3}",
    "refine.log_every=1",
    "refine.checkpoint_every=2",
)
OPEN = (
    "gates.ceiling.criteria.1.threshold=-1",  # random weights answer nothing right
    "gates.half.threshold=-2",
    "gates.done.threshold=2",  # whatever phase 1 reaches, phase 2 is run
    "gates.refined.threshold=-2",
)


def letters_folder(folder: Path) -> Path:
    """A llama of random weights that reads and writes bytes, as transformers saves it.

    Its logits are small: weights that are sure of what they say at random are worse than a uniform guess, which the
    stage `text` takes for shifted labels.
    """
    backbone = letters.__wrapped__("llama", "fp32")
    (norm,) = [p for name, p in backbone.named_parameters() if name.endswith("model.norm.weight")]
    with torch.no_grad():
        norm.fill_(0.02)
    backbone.save(folder)
    return folder


def tiny_squeeze(
    model: Path | str, *overrides: str, stages: Sequence[str] | None = None, arms: Sequence[str] | None = None,
    refined: str = "residual",
) -> Plan:  # fmt: skip
    """The rung `demo` on a few items, every gate open; or some of its stages and arms only, without a gate."""
    plan = load_plan("squeeze", rung="demo", overrides=[*SIZES, *OPEN, f"model.name={model}", *overrides])
    if stages is None:
        return plan
    kept = [stage.model_copy(update={"on": None}) for stage in plan.stages if stage.name in stages]
    for place, stage in enumerate(kept):
        if stage.name == "refine":
            kept[place] = stage.model_copy(update={"each": {**stage.each, "arm": (refined,)}})
    axes = {**plan.axes, **({"arm": tuple(arms)} if arms else {})}
    changed = plan.model_copy(update={"stages": tuple(kept), "gates": (), "axes": axes})
    return Plan.model_validate(changed.model_dump())
