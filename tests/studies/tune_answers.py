"""Small plans of `tune` in which answers come from files and endpoints: sets, recorded answers, a scripted judge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.plan import Plan

TEACHES = [{"prompt": f"Say the word {word}.", "completion": word} for word in ("oak", "elm", "fir", "ash")]
DATA = {"n_train": 0, "n_held": 1, "n_test": 0}


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def maths_file(path: Path, n: int) -> Path:
    """Problems m0, m1, ... in GSM8K's format; the answer of each is its number."""
    return write_lines(path, [{"id": f"m{i}", "question": f"Box {i} has {i} nuts. How many?", "answer": f"#### {i}"}
                              for i in range(n)])  # fmt: skip


def open_file(path: Path, n: int) -> Path:
    """Requests o0, o1, ... that no ground truth decides about."""
    return write_lines(path, [{"id": f"o{i}", "prompt": f"Request {i}: greet me.", "completion": "-"}
                              for i in range(n)])  # fmt: skip


def answers_file(path: Path, answers: Mapping[str, str]) -> Path:
    """Recorded answers."""
    return write_lines(path, [{"id": name, "answer": text} for name, text in answers.items()])


def recorded(path: Path, answers: Mapping[str, str], model: str) -> dict[str, Any]:
    """A source of recorded answers, written to a file."""
    return {"kind": "file", "file": str(answers_file(path, answers)), "model": model}


def asked_at(port: int, **options: Any) -> dict[str, Any]:
    """A source behind a server on this machine."""
    base = {"kind": "endpoint", "base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "timeout_seconds": 20}
    return base | {"retries": 1, "backoff_seconds": 0.001} | options


def stage(name: str, kind: str, needs: Sequence[str] = (), /, **params: Any) -> dict[str, Any]:
    """A stage of the study."""
    return {"name": name, "kind": f"tune.{kind}", "needs": list(needs), "params": params}


def data_stage(folder: Path, benchmarks: Mapping[str, Any], **params: Any) -> dict[str, Any]:
    """The stage `data` with a small training set of conversations."""
    source = {"kind": "conversations", "file": str(write_lines(folder / "teaches.jsonl", TEACHES))}
    return stage("data", "data", source=source, benchmarks=dict(benchmarks), **(DATA | params))


def plan_of(*stages: Mapping[str, Any]) -> Plan:
    """A plan of these stages, in this process and on the CPU."""
    made = {"study": "tune", "title": "A part", "question": "Does it?", "device": "cpu", "stages": list(stages)}
    return Plan.model_validate(made)


def shown(request: Mapping[str, Any]) -> tuple[str, str, str]:
    """The request and the answers A and B that a judge is shown."""
    text = request["messages"][1]["content"]
    parts = [rf"<{name}>\n(.*?)\n</{name}>" for name in ("request", "answer_A", "answer_B")]
    found = re.search(r"\n\n".join(parts), text, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3]
