"""Runs the command `stepwell` in forks of one process that has imported everything once: python fork_server.py.

A line of JSON on standard input asks for one run; two lines answer: the process id when it begins, the exit code when
it has ended. The child is not prepared in any way: it may be killed, and nothing of it is left. What it imported on
top is imported here as well, so that the next one need not.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any

import mishaps


def child(asked: dict[str, Any], told: int) -> int:
    """One run in a fork: in a group of its own, with its own output."""
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(asked["cwd"])
    known = set(sys.modules)
    for name, options in asked["mishaps"].items():
        getattr(mishaps, name)(**options)
    from stepwell.cli import run

    code = run(asked["command"])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(told, json.dumps([name for name in sys.modules if name not in known]).encode())
    return code


def answer(asked: dict[str, Any]) -> None:
    """Fork, wait, tell."""
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(hear)
            code = child(asked, tell)
        finally:
            os._exit(code)  # no buffer and no handler of the server is the child's
    os.close(tell)
    print(json.dumps({"pid": pid}), flush=True)
    with os.fdopen(hear, "rb") as heard:
        names = heard.read()  # until the child, and whoever has its end of the pipe, is gone
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    for name in json.loads(names) if names else ():
        if name.split(".")[0] in ("torch", "transformers", "sklearn", "scipy", "stepwell", "plotly", "openai"):
            importlib.import_module(name)


def main() -> None:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from stepwell import kinds
    from stepwell.report import write_report  # noqa: F401
    from stepwell.studies import KINDS

    for kind in KINDS:
        kinds.resolve(kind.run)
    for line in sys.stdin:
        # A thread that lived here would be missing in the child, with whatever lock it held.
        assert threading.active_count() == 1
        answer(json.loads(line))


if __name__ == "__main__":
    main()
