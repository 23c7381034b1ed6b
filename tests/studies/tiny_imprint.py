"""The shipped plan `imprint`, so small that all its stages run in seconds; what it is made of stays as shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwell.plan import Job, Plan, jobs, load_plan
from stepwell.stage import Input, Memory, StageContext

RECIPE = "{steps: 60, restarts: 2, lr: 0.1, schedule: constant, init: table, curve_every: 1}"
SHORT = "{steps: 40, restarts: 1, lr: 0.1, schedule: constant, init: table, curve_every: 1}"
MODEL = "{name: ./nowhere, otherwise: {width: 64}}"
"""A folder that does not exist, so that the model of random weights is taken; it reads bytes."""
DOUBLE = "{name: ./nowhere, precision: fp64, otherwise: {architecture: gpt2, width: 32, layers: 2}}"
"""In float64 throughout, for comparison with other ways to compute the same."""
SIZES = (
    "engine=inline",
    "threads_per_job=1",
    "device=cpu",
    "axes.tier=[arithmetic]",
    "axes.model=[tiny]",
    "axes.slots=[1, 2]",
    "data.tiers.arithmetic.n=4",
    "baselines.slots=6",
    "baselines.draws=2",
    "baselines.below_random=0.9",  # random weights hold little: a fit that retires when it is exact has not gone far
    "single.slots=6",
    f"single.recipe={RECIPE}",
    "joint.slots=6",
    f"joint.recipe={RECIPE}",
    "paraphrased.slots=6",
    f"paraphrased.recipe={SHORT}",
    "controls.items=0",
    "controls.questions=2",
    "controls.limit=4",
    "measure.items=2",
    "sweep.items=2",
    f"sweep.recipe={SHORT}",
    "smallest.items=1",
    "smallest.highest=6",
    f"smallest.recipe={SHORT}",
)


def tiny_imprint(
    *overrides: str, model: str = MODEL, stages: Sequence[str] | None = None, gates: Sequence[str] | None = None
) -> Plan:
    """The rung `demo` on a few sums; with some of its stages and gates only, where they are named.

    What is left out takes the needs of others with it, and a gate the stages that it would have held.
    """
    plan = load_plan("imprint", rung="demo", overrides=[*SIZES, f"model.models.tiny={model}", *overrides])
    kept = [s for s in plan.stages if stages is None or s.name in stages]
    names = {stage.name for stage in kept}
    asked = []
    for gate in plan.gates:
        if (gates is None and stages is None) or gate.name in (gates or ()):
            before = tuple(selector for selector in gate.before if selector.stage in names)
            asked.append(gate.model_copy(update={"before": before}))
    changed = plan.model_copy(update={"stages": tuple(kept), "gates": tuple(asked)})
    return Plan.model_validate(changed.model_dump())


FIT = ("data", "model", "baselines", "joint")
"""The stages of one fit of all pairs."""


def job_of(plan: Plan, name: str) -> Job:
    """The job of this id, or the only one of the stage of this name."""
    (found,) = [job for job in jobs(plan) if name in (job.id, job.stage)]
    return found


def context(plan: Plan, run: Path, name: str, folder: Path) -> tuple[StageContext, Memory]:
    """What a stage of a finished run would be given again, with records in memory and artifacts in a folder.

    Args:
        plan: of the run.
        run: its folder, in which the jobs that this one needs are done.
        name: of a job, or of a stage with one job.
        folder: for artifacts; is made.
    """
    every = {job.id: job for job in jobs(plan)}
    job = job_of(plan, name)
    inputs: dict[str, tuple[Input, ...]] = {}
    for need in job.needs:
        given = Input(job=every[need], folder=run / "artifacts" / need, records_path=run / "records" / f"{need}.jsonl")
        stage = every[need].stage
        inputs[stage] = (*inputs.get(stage, ()), given)
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory(axes=job.axes)
    made = StageContext(job=job, folder=folder, inputs=inputs, threads=1, seed=7, asked_device="cpu", recorder=memory)
    return made, memory


def of_kind(memory: Memory, kind: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    return [record for record in memory.records if record["kind"] == kind]


def squad_file(path: Path, pairs: Sequence[tuple[str, str, str]], context: str = "A text.") -> Path:
    """A file in SQuAD's format of (id, question, answer)."""
    lines = [
        {"id": id, "question": question, "context": context, "answers": {"text": [answer] if answer else []}}
        for id, question, answer in pairs
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
