"""A real server, `transformers serve` with SmolLM2-135M, as reference and as judge through the stages of `tune`.

Its packages are the extra `serving` of transformers: pip install "transformers[serving]".
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from tiny import records
from tune_answers import asked_at, data_stage, maths_file, open_file, plan_of, recorded, stage

from fake_endpoint import PROXIES
from stepwell.errors import StepwellError
from stepwell.models import locate
from stepwell.runner import run

pytestmark = pytest.mark.slow

SECONDS_TO_START = 180.0
NEEDED = ("fastapi", "uvicorn", "accelerate")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """The server's port, and the name by which it knows the one model that it serves: its folder."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        pytest.skip(f'no server: {", ".join(missing)} missing; pip install "transformers[serving]"')
    try:
        folder = str(locate("smollm2-135m"))
    except StepwellError as error:
        pytest.skip(f"SmolLM2-135M cannot be had: {error.cause}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder, "--device", "cpu"]
    with log.open("w") as told, pytest.MonkeyPatch.context() as patch:
        for name in (*PROXIES, *(name.upper() for name in PROXIES)):
            patch.delenv(name, raising=False)
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=told, stderr=told,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            wait_for(port, process, log)
            yield port, folder
        finally:
            process.terminate()
            process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")


def test_a_real_server_is_reference_and_judge(served: tuple[int, str], tmp_path: Path) -> None:
    port, name = served

    def server(**options: Any) -> dict[str, Any]:
        return asked_at(port, model=name, timeout_seconds=120, **options)

    benchmarks = {
        "maths": {"kind": "gsm8k", "file": str(maths_file(tmp_path / "m.jsonl", 3))},
        "talk": {"kind": "open", "file": str(open_file(tmp_path / "o.jsonl", 3))},
    }
    ours = {f"m{i}": f"#### {i}" for i in range(3)} | {f"o{i}": "Good morning to you, and welcome." for i in range(3)}
    # The same weights and prompts in another way: what a model here writes, the server has to write too.
    own = {"kind": "model", "model": name, "max_tokens": 24, "retries": 0}
    plan = plan_of(
        data_stage(tmp_path, benchmarks),
        stage("ours", "reference", ["data"], source=recorded(tmp_path / "ours.jsonl", ours, "we")),
        stage("theirs", "reference", ["data"], source=server(max_tokens=24, retries=0)),
        stage("here", "reference", ["data"], source=own),
        stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs",
              judge=server(max_tokens=48, retries=1)),
    )  # fmt: skip
    run(plan, tmp_path / "run")
    theirs = {row["id"]: row for row in records(tmp_path / "run", "theirs", "item")}
    here = {row["id"]: row for row in records(tmp_path / "run", "here", "item")}
    assert len(theirs) == 6 and all(row["prediction"] for row in theirs.values())
    assert {name: row["prediction"] for name, row in theirs.items()} == {
        name: row["prediction"] for name, row in here.items()
    }
    assert {row["status"] for row in theirs.values()} <= {"right", "wrong", "silent"}
    (told,) = records(tmp_path / "run", "versus", "judge")
    assert (told["benchmark"], told["model"], told["pairs"]) == ("talk", name, 3)
    matches = {row["id"]: row for row in records(tmp_path / "run", "versus", "match")}
    assert {row["by"] for name, row in matches.items() if name[0] == "m"} == {"truth"}
    undecided = [name for name, row in matches.items() if row["outcome"] == "undecided"]
    assert len(undecided) == told["unparsed"] and len(matches) == 6
    kept = sorted((tmp_path / "run/artifacts/versus/judged").glob("*.json"))
    assert len(kept) == 6, "two orders of three pairs"
