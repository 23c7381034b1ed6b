"""What a kill leaves beside the files that count is gone once the run has gone on. Fast: no model is run."""

from __future__ import annotations

from pathlib import Path

from stepwell.plan import jobs
from stepwell.runner import job_fingerprints, run
from stepwell.store import JobStore, RunFolder
from toy import contents, started, toy_plan


def test_files_that_were_being_written_are_removed_and_no_other(tmp_path: Path) -> None:
    job, folder = jobs(toy_plan())[0], RunFolder(tmp_path)
    store = JobStore(folder, job, "f")
    store.begin()
    store.restored()
    store.save({"step": 1})
    store.close()
    asked = folder.artifacts(job.id) / "asked"
    asked.mkdir()
    (asked / "a.json").write_text("{}")
    marker = folder.marker_path(job.id)
    torn = [folder.checkpoints(job.id) / ".last.ckpt.41.part", asked / ".b.json.41.part",
            marker.with_name(f".{marker.name}.41.part")]  # fmt: skip
    marker.parent.mkdir()
    for path in torn:
        path.write_bytes(b"half")
    again = JobStore(folder, job, "f")
    again.begin()
    assert not any(path.exists() for path in torn)
    assert again.restored() == {"step": 1} and (asked / "a.json").read_text() == "{}"
    again.close()


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    """Killed behind a marker, a job is done, and its checkpoint, as large as the model, would stay for good."""
    plan = toy_plan(gates=[])
    run(plan, tmp_path / "run")
    before, folder = contents(tmp_path / "run"), RunFolder(tmp_path / "run")
    job = jobs(plan)[0]
    store = JobStore(folder, job, job_fingerprints(plan, jobs(plan))[job.id])
    folder.checkpoints(job.id).mkdir(parents=True)
    (folder.checkpoints(job.id) / "job.json").write_text('{"fingerprint": "' + store.fingerprint + '"}')
    folder.checkpoint(job.id).write_bytes(b"the last state")
    for name in (".plan.yaml.41.part", ".policy.json.41.part", ".env.json.41.part", "records/.gates.jsonl.41.part"):
        (tmp_path / "run" / name).write_bytes(b"half")
    n = len(started(tmp_path / "run"))
    run(plan, tmp_path / "run")
    assert not folder.checkpoints(job.id).exists() and not list((tmp_path / "run").rglob(".*.part"))
    assert len(started(tmp_path / "run")) == n and contents(tmp_path / "run") == before
