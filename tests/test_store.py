"""The store: records, events, locks, checkpoints, policy, markers, environment."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.errors import StepwellError
from stepwell.plan import jobs
from stepwell.randomness import random_state, set_random_state
from stepwell.runner import job_fingerprints, run
from stepwell.store import (
    JobStore,
    Lock,
    RecordWriter,
    RunFolder,
    append_event,
    differences,
    environment,
    freeze,
    git_state,
    is_disk_full,
    is_held,
    load_checkpoint,
    make_writable,
    need_space,
    override_of,
    read_events,
    read_records,
    replacing,
    save_checkpoint,
    sha256_of,
    write_atomically,
)
from toy import GATE, SOURCE, contents, marker, one_stage, small_disk, toy_plan

spawn = multiprocessing.get_context("spawn")


# Records


def test_a_record_is_one_line_with_kind_and_axes_first(tmp_path: Path):
    writer = RecordWriter(tmp_path / "a.jsonl", {"arm": "cot", "seed": 0})
    writer.write("step", {"step": 1, "loss": 0.25})
    assert (tmp_path / "a.jsonl").read_text() == '{"kind":"step","arm":"cot","seed":0,"step":1,"loss":0.25}\n'
    assert writer.sha256 == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()


def test_floats_come_back_exactly(tmp_path: Path):
    rng = random.Random(1)
    values = [math.ldexp(rng.random(), rng.randrange(-900, 900)) for _ in range(500)]
    writer = RecordWriter(tmp_path / "a.jsonl", {})
    for value in values:
        writer.write("x", {"value": value})
    assert [record["value"] for record in read_records(tmp_path / "a.jsonl")] == values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array([np.nan])[0]])
def test_what_is_not_finite_is_null(tmp_path: Path, value: Any):
    RecordWriter(tmp_path / "a.jsonl", {}).write("x", {"loss": value, "parts": [1.0, value], "text": "NaN"})
    assert [*read_records(tmp_path / "a.jsonl")] == [{"kind": "x", "loss": None, "parts": [1.0, None], "text": "NaN"}]


def test_numbers_of_numpy_and_torch_are_plain_ones(tmp_path: Path):
    import torch

    fields = {
        "a": np.int64(3),
        "b": np.float64(0.5),
        "c": torch.tensor(2.5),
        "d": torch.tensor([1, 2]),
        "e": np.bool_(True),
    }
    RecordWriter(tmp_path / "a.jsonl", {}).write("x", fields)
    assert next(read_records(tmp_path / "a.jsonl")) == {"kind": "x", "a": 3, "b": 0.5, "c": 2.5, "d": [1, 2], "e": True}


def test_any_text_is_one_line(tmp_path: Path):
    text = 'half a pair \ud83d, "quotes", \u2028, \n newline, é, 日本'
    RecordWriter(tmp_path / "a.jsonl", {}).write("x", {"text": text})
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 1
    assert next(read_records(tmp_path / "a.jsonl"))["text"] == text


def test_a_field_cannot_contradict_the_job(tmp_path: Path):
    writer = RecordWriter(tmp_path / "a.jsonl", {"seed": 0})
    writer.write("x", {"seed": 0})
    with pytest.raises(ValueError, match="record x: field seed = 1 contradicts the job's own"):
        writer.write("x", {"seed": 1})
    with pytest.raises(TypeError, match="a record cannot hold"):
        writer.write("x", {"value": object()})
    assert len([*read_records(tmp_path / "a.jsonl")]) == 1


def test_going_on_cuts_off_what_lies_behind(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    writer = RecordWriter(path, {})
    for step in range(3):
        writer.write("x", {"step": step})
    kept, whole = writer.bytes, path.read_bytes()
    for step in range(3, 9):
        writer.write("x", {"step": step})
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"kind":"x","st')
    assert len([*read_records(path)]) == 9
    again = RecordWriter(path, {}, offset=kept)
    assert path.read_bytes() == whole
    assert (again.bytes, again.lines, again.sha256) == (kept, 3, sha256_of(path))


def test_a_full_disk_leaves_whole_records(tmp_path: Path):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        writer = RecordWriter(disk / "a.jsonl", {})
        with pytest.raises(OSError) as caught:
            for step in range(10_000):
                writer.write("x", {"step": step, "text": "a" * 700})
        assert is_disk_full(caught.value)
        assert (disk / "a.jsonl").stat().st_size == writer.bytes
        assert len([*read_records(disk / "a.jsonl")]) == writer.lines > 50
        assert writer.sha256 == sha256_of(disk / "a.jsonl")
        writer.close()


# Files


def test_a_replaced_file_is_whole_or_as_before(tmp_path: Path):
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(RuntimeError, match="planted"), replacing(tmp_path / "a.json") as file:
        file.write(b"new, but tor")
        raise RuntimeError("planted")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("length", [None, 0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_hash_of_a_beginning(tmp_path: Path, length: int | None):
    content = random.Random(0).randbytes((2 << 20) + 77)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a", length=length) == hashlib.sha256(content[:length]).hexdigest()


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StepwellError, match="the run folder cannot be written: Not a directory") as caught:
        make_writable(tmp_path / "file" / "run")
    assert "Name another run folder" in caught.value.way_out
    with (
        small_disk(tmp_path / "disk", 1 << 20, writable=False) as disk,
        pytest.raises(StepwellError, match="the run folder cannot be written: Read-only file system"),
    ):
        make_writable(disk / "run")
    make_writable(tmp_path / "new" / "run")
    assert [*(tmp_path / "new" / "run").iterdir()] == []


def test_too_little_space_is_said_before(tmp_path: Path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        need_space(disk, 1 << 19)
        with pytest.raises(StepwellError, match=r"has 1\.05 MB free, and the run needs about 16\.8 MB"):
            need_space(disk, 1 << 24)
        (disk / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(StepwellError, match="the disk is full"):
            make_writable(disk / "run")


def test_a_full_disk_is_known_in_every_dress():
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise ValueError("while saving") from error
    except ValueError as error:
        assert is_disk_full(error)
    assert not is_disk_full(OSError(13, "Permission denied"))
    assert not is_disk_full(ValueError("28"))


# Events


def _write_events(path: str, name: int) -> None:
    for count in range(200):
        append_event(Path(path), "tick", writer=name, count=count, padding="x" * (count * 7 % 900))


def test_concurrent_writers_leave_whole_lines(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    writers = [spawn.Process(target=_write_events, args=(str(path), name)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for name in range(3):
        assert [event["count"] for event in events if event["writer"] == name] == [*range(200)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", events[0]["time"])


@pytest.mark.parametrize("torn", ['{"time":"2026', "x" * 10_000])
def test_a_torn_event_is_cut_off(tmp_path: Path, torn: str):
    path = tmp_path / "events.jsonl"
    append_event(path, "first")
    with path.open("a") as file:
        file.write(torn)
    assert [event["event"] for event in read_events(path)] == ["first"]
    append_event(path, "second")
    assert [event["event"] for event in read_events(path)] == ["first", "second"]
    assert len(path.read_text().splitlines()) == 2


def test_events_on_a_full_disk_stay_whole(tmp_path: Path):
    with small_disk(tmp_path / "disk", 32 << 10) as disk:
        with pytest.raises(OSError, match="No space left"):
            for count in range(1000):
                append_event(disk / "events.jsonl", "tick", count=count, padding="x" * 333)
        counts = [json.loads(line)["count"] for line in (disk / "events.jsonl").read_text().splitlines()]
        assert counts == [*range(len(counts))]
        assert (disk / "events.jsonl").read_bytes().endswith(b"\n")


# Locks

HOLD = """
import sys, time
from pathlib import Path
from stepwell.store import Lock
with Lock(Path(sys.argv[1]), "the run folder"):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path):
    path = tmp_path / "lock"
    assert not is_held(path)
    with _holder(path) as holder:
        assert is_held(path)
        with pytest.raises(StepwellError) as caught, Lock(path, "the run folder"):
            pass
        expected = (
            rf"the run folder is in use by process {holder.pid} on {re.escape(socket.gethostname())} since 20\d\d-"
        )
        assert re.search(expected, str(caught.value))
        assert caught.value.exit_code == 3
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with Lock(path, "the run folder"):
        assert is_held(path)
    assert not is_held(path)


def test_a_lock_waits_for_one_that_is_dying(tmp_path: Path):
    with _holder(tmp_path / "lock") as holder:
        os.kill(holder.pid, signal.SIGKILL)
        with Lock(tmp_path / "lock", "job x", wait_seconds=10):
            pass


FORK = """
import os, sys
from pathlib import Path
from stepwell.store import Lock, is_held
(wait, go), (hear, tell) = os.pipe(), os.pipe()
with Lock(Path(sys.argv[1]), "the run folder"):
    if os.fork() == 0:
        os.write(tell, b"x")
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    os.read(hear, 1)
    print(is_held(Path(sys.argv[1])))
print(is_held(Path(sys.argv[1])))
"""


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path):
    command = [sys.executable, "-c", FORK, str(tmp_path / "lock")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["True", "False"]


# Checkpoints

HEADER = {"run": "r", "job": "j", "fingerprint": "f"}


def test_a_plain_state_is_json_and_needs_no_torch(tmp_path: Path):
    code = """
import sys
from pathlib import Path
from stepwell.randomness import random_state
from stepwell.store import save_checkpoint, load_checkpoint
state = {"step": 3, "order": [2, 0, 1], "nested": {"x": None, "y": 0.1}, "random": random_state()}
save_checkpoint(Path(sys.argv[1]), {"job": "j"}, state)
assert load_checkpoint(Path(sys.argv[1])) == ({"job": "j"}, state)
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.ckpt")], check=True, env=environment)
    assert json.loads((tmp_path / "a.ckpt").read_text())["state"]["order"] == [2, 0, 1]


def test_tensors_come_back_bit_by_bit(tmp_path: Path):
    import torch

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pair": (1, [2, "x"]), 5: torch.float16}
    save_checkpoint(tmp_path / "a.ckpt", HEADER, state)
    header, loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert header == HEADER
    assert loaded["pair"] == (1, [2, "x"]) and loaded[5] is torch.float16
    assert all(torch.equal(loaded["model"][name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, np.float64(2)]}}, r"state\.a\.b\[1\]: a checkpoint cannot hold numpy\.float64"),
        ({"rng": random.Random(0)}, r"state\.rng: a checkpoint cannot hold random\.Random"),
        ({"f": print}, r"state\.f: a checkpoint cannot hold builtins\.builtin_function_or_method"),
        ({(1, 2): 3}, r"state: a checkpoint cannot hold the key \(1, 2\) of type tuple"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, state: dict[Any, Any], message: str):
    save_checkpoint(tmp_path / "a.ckpt", HEADER, {"good": 1})
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "a.ckpt", HEADER, state)
    assert load_checkpoint(tmp_path / "a.ckpt")[1] == {"good": 1}


def test_a_checkpoint_never_runs_code(tmp_path: Path):
    import torch

    torch.save({"x": torch.zeros(1)}, tmp_path / "good.ckpt")
    # A pickle, written by hand, that would call os.system: GLOBAL posix system, the argument, REDUCE.
    evil = b"cposix\nsystem\n(V touch " + str(tmp_path / "planted").encode() + b"\ntR."
    with zipfile.ZipFile(tmp_path / "good.ckpt") as good, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, evil if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(StepwellError, match="the checkpoint cannot be read") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "Delete this file" in caught.value.way_out
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"{}", b'{"stepwell": {}', b"\x80\x02}q"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(StepwellError, match="the checkpoint cannot be read"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path):
    import torch

    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        save_checkpoint(disk / "a.ckpt", HEADER, {"x": torch.ones(10)})
        with pytest.raises(OSError) as caught:
            save_checkpoint(disk / "a.ckpt", HEADER, {"x": torch.ones(1 << 20)})
        assert is_disk_full(caught.value)
        assert [path.name for path in disk.iterdir()] == ["a.ckpt"]
        assert load_checkpoint(disk / "a.ckpt")[1]["x"].sum() == 10


def test_random_states_come_back(tmp_path: Path):
    import torch

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), *np.random.normal(size=3).tolist(), *torch.rand(3).tolist()]

    random.gauss(0, 1)  # leaves half a pair in store, which belongs to the state
    np.random.normal()
    save_checkpoint(tmp_path / "a.ckpt", HEADER, {"random": random_state()})
    expected = draw()
    draw()
    set_random_state(load_checkpoint(tmp_path / "a.ckpt")[1]["random"])
    assert draw() == expected


# A job's store


def _store(folder: Path, steps: int = 20) -> JobStore:
    plan = one_stage("toy.walk", steps=steps)
    among = jobs(plan)
    where = RunFolder(folder)
    where.path.mkdir(exist_ok=True)
    if not where.env_path.exists():
        where.env_path.write_text(json.dumps({"run": folder.name}))
    return JobStore(where, among[0], job_fingerprints(plan, among)["only"])


def _begun(folder: Path, **options: Any) -> JobStore:
    store = _store(folder, **options)
    store.begin()
    store.restored()
    store.write("step", {"step": 1, "value": 0.5})
    store.save({"step": 1})
    store.write("step", {"step": 2, "value": 0.5})
    store.close()
    return store


def test_a_job_goes_on_at_its_checkpoint(tmp_path: Path):
    _begun(tmp_path / "a")
    again = _store(tmp_path / "a")
    again.begin()
    assert again.restored() == {"step": 1}
    assert [record["step"] for record in read_records(again.run.records("only"))] == [1]
    with pytest.raises(RuntimeError, match=r"only: restored\(\) comes before the first record"):
        again.restored()


def test_a_job_without_a_checkpoint_starts_anew(tmp_path: Path):
    store = _store(tmp_path / "a")
    store.begin()
    store.write("step", {"step": 1})
    (store.run.artifacts("only") / "half.bin").write_text("half")
    store.close()
    again = _store(tmp_path / "a")
    again.begin()
    assert again.restored() is None
    again.finish()
    assert contents(tmp_path / "a") == {"records/only.jsonl": hashlib.sha256(b"").hexdigest()}


def test_a_changed_job_drops_its_checkpoint_with_an_event(tmp_path: Path):
    _begun(tmp_path / "a")
    changed = _store(tmp_path / "a", steps=21)
    changed.begin()
    assert changed.restored() is None
    event = [*read_events(changed.run.events_path)][-1]
    assert event["event"] == "checkpoint-discarded" and "were changed" in event["reason"]


def test_records_that_lost_lines_start_the_job_anew(tmp_path: Path):
    store = _begun(tmp_path / "a")
    path = store.run.records("only")
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.7"))
    again = _store(tmp_path / "a")
    again.begin()
    assert again.restored() is None
    assert path.read_bytes() == b""
    assert "the records before it" in [*read_events(again.run.events_path)][-1]["reason"]


def test_a_foreign_checkpoint_is_refused(tmp_path: Path):
    theirs = _begun(tmp_path / "theirs").run.checkpoints("only") / "last.ckpt"
    ours = _begun(tmp_path / "ours").run.checkpoints("only") / "last.ckpt"
    other = _begun(tmp_path / "other", steps=21).run.checkpoints("only") / "last.ckpt"
    header, state = load_checkpoint(other)
    save_checkpoint(other, {**header, "run": "ours"}, state)
    cases = {theirs: "another run 'theirs', not to 'ours'", other: "another version of this job, with fingerprint '"}
    for source, message in cases.items():
        ours.write_bytes(source.read_bytes())
        again = _store(tmp_path / "ours")
        again.begin()
        with pytest.raises(StepwellError, match=f"stage only: .*the checkpoint belongs to {message}") as caught:
            again.restored()
        assert "Delete this file" in caught.value.way_out
    header["job"] = "train.cot.0"
    save_checkpoint(ours, header, state)
    with pytest.raises(StepwellError, match=r"the checkpoint belongs to another job 'train\.cot\.0', not to 'only'"):
        _store(tmp_path / "ours").restored()


# Policy


def _gates(**changes: Any) -> list[dict[str, Any]]:
    return [gate.model_dump(mode="json") for gate in toy_plan(**changes).gates]


def test_the_policy_is_frozen(tmp_path: Path):
    path = tmp_path / "policy.json"
    policy, added = freeze(path, _gates())
    canonical = json.dumps(policy["gates"], sort_keys=True, separators=(",", ":"))
    assert policy["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert freeze(path, _gates()) == (policy, None) and added is None
    with pytest.raises(StepwellError) as caught:
        freeze(path, _gates(threshold=0.05))
    assert "gates.early.criteria.0.threshold: 0.1 -> 0.05" in caught.value.cause
    assert "--reason" in caught.value.way_out
    with pytest.raises(StepwellError, match="gates were changed"):
        freeze(path, [], "   ")
    assert json.loads(path.read_text()) == policy


def test_an_override_is_kept_with_its_reason(tmp_path: Path):
    path = tmp_path / "policy.json"
    first, _ = freeze(path, _gates())
    policy, added = freeze(path, _gates(threshold=0.05), "the baseline was mistyped")
    change = "gates.early.criteria.0.threshold: 0.1 -> 0.05"
    assert added == {
        "reason": "the baseline was mistyped",
        "changes": [change],
        "replaced_sha256": first["sha256"],
    }
    assert override_of(policy, "early") == {"reason": "the baseline was mistyped", "changes": [change]}
    assert override_of(policy, "earl") is None
    assert freeze(path, _gates(threshold=0.05)) == (policy, None)
    removed, _ = freeze(path, [], "not needed")
    assert len(removed["overrides"]) == 2
    assert removed["overrides"][1]["changes"][0].startswith('gates.early: {"asks"')


def test_a_policy_changed_by_hand_is_refused(tmp_path: Path):
    path = tmp_path / "policy.json"
    freeze(path, _gates())
    path.write_text(path.read_text().replace("0.1", "0.05"))
    with pytest.raises(StepwellError, match="the frozen policy was changed by hand"):
        freeze(path, _gates(threshold=0.05), "a reason")
    path.write_text("{")
    with pytest.raises(StepwellError, match="the frozen policy was changed by hand"):
        freeze(path, _gates())


def test_differences_name_each_leaf():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": True}
    new = {"a": 1, "b": {"c": [1, 3, 4]}, "e": 1}
    assert differences(old, new, "x") == [
        "x.b.c.1: 2 -> 3",
        "x.b.c.2: absent -> 4",
        "x.b.d: null -> absent",
        "x.e: true -> 1",
    ]
    assert differences(GATE, json.loads(json.dumps(GATE)), "x") == []


# Markers


def _truncate(folder: Path) -> str:
    path = folder / "records" / "walk.0.jsonl"
    os.truncate(path, path.stat().st_size - 9)
    return r"records/walk\.0\.jsonl has \d+ bytes instead of \d+"


def _tamper(folder: Path) -> str:
    path = folder / "records" / "walk.0.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":1,', b'"step":9,'))
    return r"records/walk\.0\.jsonl was changed \(its sha256 differs\)"


def _lose(folder: Path) -> str:
    (folder / "artifacts" / "walk.0" / "final.json").unlink()
    return r"artifacts/walk\.0/final\.json is missing"


def _mend(folder: Path) -> str:
    path = folder / "jobs" / "walk.0.json"
    path.write_text(json.dumps({**marker(folder, "walk.0"), "artifacts": {}}))
    return "its done marker was changed"


def _break(folder: Path) -> str:
    (folder / "jobs" / "walk.0.json").write_text('{"job": "walk.0"')
    return "its done marker cannot be read"


@pytest.mark.parametrize("damage", [_truncate, _tamper, _lose, _mend, _break])
def test_each_damage_to_a_finished_job_is_seen(tmp_path: Path, damage: Any):
    plan = toy_plan()
    run(plan, tmp_path / "run")
    where, among, identities = RunFolder(tmp_path / "run"), jobs(plan), job_fingerprints(plan, jobs(plan))
    assert [where.fault(job, identities[job.id]) for job in among] == [None] * 4
    expected = damage(tmp_path / "run")
    fault = where.fault(among[0], identities["walk.0"])
    assert fault is not None and re.fullmatch(expected, fault)
    assert where.fault(among[1], identities["walk.1"]) is None


def test_a_marker_knows_what_its_inputs_were(tmp_path: Path):
    plan = toy_plan()
    run(plan, tmp_path / "run")
    where, identities = RunFolder(tmp_path / "run"), job_fingerprints(plan, jobs(plan))
    changed = {**marker(tmp_path / "run", "walk.0"), "content": "of another day"}
    where.marker_path("walk.0").write_text(json.dumps(changed))
    consumer = next(job for job in jobs(plan) if job.id == "sum.0")
    assert where.fault(consumer, identities["sum.0"]) == "its input walk.0 is no longer the same"


# Environment


def test_the_environment_is_described(tmp_path: Path):
    (tmp_path / "data.json").write_text("[]")
    facts = environment(data_files=[tmp_path / "data.json"], cwd=tmp_path)
    assert facts["packages"]["pytest"] == pytest.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["data"] == {str(tmp_path / "data.json"): hashlib.sha256(b"[]").hexdigest()}
    assert facts["cpu_count"] >= 1 and facts["memory_bytes"] > 1 << 26
    assert json.loads(json.dumps(facts)) == facts


def test_commit_and_dirty_flag(tmp_path: Path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("b")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_resumed_run_keeps_its_id_and_notes_another_machine(tmp_path: Path):
    where = RunFolder(tmp_path)
    where.write_environment(toy_plan(), {"walk.0": 1}, [])
    first = json.loads(where.env_path.read_text())
    where.write_environment(toy_plan(), {"walk.0": 1}, [])
    assert [*read_events(where.events_path)] == []
    where.env_path.write_text(json.dumps({**first, "python": "3.9.0"}))
    where.write_environment(toy_plan(), {"walk.0": 1}, [])
    (event,) = read_events(where.events_path)
    assert event["changed"] == ["python"] and event["python"]["old"] == "3.9.0"
    assert where.run_id() == first["run"] and len(first["run"]) == 16
