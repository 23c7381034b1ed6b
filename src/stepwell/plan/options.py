"""What the engines that reach beyond this machine are told: which cluster, and what a job asks of it.

Neither is part of a job's identity: where a job ran changes no record.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwell.spec import Spec

# What is written into a batch script, which a shell reads: no line break, no quote, no dollar sign.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_@%:.,=/*+&|\[\]-]+$")]
Flag = Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]


class RayOptions(Spec):
    """How `engine: ray` runs.

    Args:
        address: of the cluster, as `ray.init` takes it; by default what RAY_ADDRESS names, else one of this machine
            alone, which lives as long as the run.
        gpus_per_job: share of a GPU that a job on one device holds: 0.25 puts four on one. Several processes of one
            training hold a whole one each; workers over the items of a job share what the cluster has.
    """

    address: str | None = None
    gpus_per_job: float = Field(default=1.0, gt=0, le=1)


class SlurmOptions(Spec):
    """How `engine: slurm` asks for a job. What is None is left to the cluster.

    Args:
        cluster: `slurm`, or `local`: the same through submitit's stand-in, on this machine, to try it without a queue.
        partition: where it queues.
        account: who pays.
        minutes: it may run. It stops at a checkpoint some minutes before, and is submitted again.
        memory_gb: of a node, in GB.
        flags: more of sbatch's long options by name, without dashes, e.g. {constraint: a100, exclusive: true}.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: Word | None = None
    account: Word | None = None
    minutes: int = Field(default=1440, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    flags: dict[Flag, bool | int | float | Word] = Field(default_factory=dict)
