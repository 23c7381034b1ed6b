"""One job in several processes on this machine: `torchrun` around workers, and one outcome for all of them.

Run as `python -m stepwell.engine.torchrun`, with the arguments and the answer of a worker. On SIGTERM or SIGINT all
processes stop together after a checkpoint: `torchrun` itself would kill them after half a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from stepwell.engine.base import JobCall, Outcome, log_of
from stepwell.engine.launch import end_of
from stepwell.engine.worker import STOP, answering, arguments_of, die_by_kernel, die_with


def main(arguments: list[str] | None = None) -> int:
    """Run the job; print its outcome, one line of JSON, on the standard output it was started with."""
    call, parent, _ = arguments_of(arguments)
    with tempfile.TemporaryDirectory(prefix="stepwell-") as name:
        folder = Path(name)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: (folder / STOP).touch())
        if parent is not None:
            die_with(parent)
        answer = answering()
        # The agent is no worker of ours: the kernel ends it with this process, and its workers end with it.
        done = subprocess.Popen(command(call, folder), stdin=subprocess.DEVNULL, preexec_fn=die_by_kernel).wait()
        outcome = outcome_of(call, folder, done)
    os.write(answer, outcome.to_json().encode())
    return 0 if outcome.state == "done" else 4


def command(call: JobCall, answers: Path) -> list[str]:
    """`torchrun` with as many workers as the call asks for."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(call.ranks)]
    worker = ["-m", "stepwell.engine.worker", call.folder, call.job, "--fingerprint", call.fingerprint]
    return [sys.executable, *run, *worker, "--threads", str(call.threads), "--answers", str(answers)]


def outcome_of(call: JobCall, answers: Path, code: int) -> Outcome:
    """What the processes' answers come to.

    The first that failed says why: the others have only lost it. Where one is gone without a word, all of them are
    `died`, and the job is tried again from its checkpoint.
    """
    found: dict[int, Outcome] = {}
    for path in sorted(answers.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        found[int(path.stem)] = Outcome.from_json(path.read_text(encoding="utf-8"))
    if failed := [outcome for outcome in found.values() if outcome.state == "failed"]:
        return failed[0]
    silent = [rank for rank in range(call.ranks) if rank not in found]
    if silent or any(outcome.state == "died" for outcome in found.values()):
        who = f"process {silent[0]} of {call.ranks} ended without a result" if silent else "its processes lost another"
        return Outcome(
            state="died",
            cause=f"{who} (torchrun's exit code is {code})",
            way_out="Read its log; give it more memory or fewer `devices`; then run the same command again.",
            traceback=end_of(log_of(call)),
        )
    stopped = [outcome for outcome in found.values() if outcome.state == "stopped"]
    return stopped[0] if stopped else found[0]


if __name__ == "__main__":
    raise SystemExit(main())
