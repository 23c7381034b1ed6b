"""Begin a run, or go on with one: everything that is checked and frozen before the first stage."""

from __future__ import annotations

from pathlib import Path

import yaml

from stepwell import __version__
from stepwell.engine.worker import seed_of
from stepwell.errors import StageFailed, StepwellError
from stepwell.estimate import estimate
from stepwell.fingerprint import fingerprint, of_spec
from stepwell.plan import Job, Plan, jobs
from stepwell.plan.check import checked, params_of
from stepwell.plan.expand import expanded
from stepwell.runner.walk import GO_ON, RunResult, Walk
from stepwell.spec import data_files
from stepwell.store import RunFolder, freeze, is_disk_full, make_writable, need_space

FLOOR_BYTES = 16 << 20


def run(plan: Plan, folder: Path | str, *, override: str | None = None, needed_bytes: int | None = None) -> RunResult:
    """Run a plan in a folder, or go on with it: what is done and proved by its marker is not run again.

    Args:
        override: why gates that were changed since the run began are taken all the same; logged and shown.
        needed_bytes: free space without which nothing is started; by default 16 MiB and a second copy of every
            checkpoint there is.

    Raises:
        StepwellError: the plan is not sound, the folder is in use, not writable, full, of another study, or its gates
            were changed.
        StageFailed: jobs failed; all that did not depend on them was run first.
        Interrupted: SIGINT or SIGTERM came; the folder can be gone on with.
    """
    plan = expanded(checked(plan))
    among = jobs(plan)
    where = RunFolder(folder)
    make_writable(where.path)
    with where.lock():
        try:
            _refuse_other_study(where, plan)
            where.remove_torn()
            need_space(where.path, _needed_bytes(where) if needed_bytes is None else needed_bytes)
            gates = [gate.model_dump(mode="json") for gate in plan.gates]
            resumed = where.policy_path.exists()
            policy, added = freeze(where.policy_path, gates, override)
            if added:
                where.event("gate-override", **added)
            elif override and resumed:
                where.event("gate-override-unused", reason=override)
            where.write_plan(plan)
            identities = job_fingerprints(plan, among)
            files = {path for stage in plan.stages for _, path in data_files(params_of(stage))}
            where.write_environment(plan, {job.id: seed_of(plan.seed, job) for job in among}, files)
            where.stop_path.unlink(missing_ok=True)
            if not resumed:
                cost = estimate(plan)
                stages = {each.stage: each.hours for each in cost.stages}
                where.event("estimate", device=cost.device.name, hours=cost.hours, price=cost.price, stages=stages)
            return Walk(plan, among, identities, where, policy).to_the_end(resumed)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise StageFailed("no space is left on the disk", f"Free space. {GO_ON}", path=where.path) from error


def job_fingerprints(plan: Plan, among: tuple[Job, ...]) -> dict[str, str]:
    """Job id -> identity: the sha256 of all that decides its records. Data files count by content, once each."""
    literals = {stage.name: of_spec(params_of(stage)) for stage in plan.stages}
    made: dict[str, str] = {}
    for job in among:
        made[job.id] = fingerprint(
            {
                "stage": job.stage,
                "kind": job.kind,
                "axes": dict(job.axes),
                "params": literals[job.stage],
                "needs": {need: made[need] for need in job.needs},
                "seed": plan.seed,
                "threads": plan.threads_per_job,
                "stepwell": __version__,
            }
        )
    return made


def _needed_bytes(folder: RunFolder) -> int:
    checkpoints = (folder.path / "checkpoints").glob("*/*")
    return FLOOR_BYTES + sum(path.stat().st_size for path in checkpoints)


def _refuse_other_study(folder: RunFolder, plan: Plan) -> None:
    if not folder.plan_path.exists():
        return
    try:
        held = yaml.safe_load(folder.plan_path.read_text(encoding="utf-8"))
        found = (held["study"], held["rung"])
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return  # unreadable: it is written anew, and the done markers decide
    if found != (plan.study, plan.rung):
        raise StepwellError(
            f"the folder holds study {found[0]} at rung {found[1]}, not {plan.study} at {plan.rung}",
            "Name another run folder.",
            path=folder.path,
        )
