"""A training of `wire` from the command line: its alert while it runs, and what is said of it after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import events, records
from tiny_wire import tiny_wire, wire_model

from stepwell.cli import run, show
from stepwell.plan import Plan, dump_plan
from stepwell.runner import status
from stepwell.store import RunFolder
from stepwell.studies.wire import held

A = "stage-a.bytes.3.0"
SAID = "the latent arm has its first F1 above 0, 0.50 for"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    made = tiny_wire(wire_model(tmp_path / "tiny"), stages=("data", "model", "text", "encoder", "stage-a"))
    (tmp_path / "tiny.yaml").write_text(dump_plan(made))
    return made


@pytest.fixture
def lucky(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From the second time on that held-out items are answered from latents, one answer is half right."""
    honest, asked = held.answer_items, []

    def answers(*args: Any, **options: Any) -> Iterator[Any]:
        asked.append(options["prefix_of"])
        for place, record in enumerate(honest(*args, **options)):
            yield replace(record, f1=0.5 if place == 1 and len(asked) > 1 else 0.0)

    monkeypatch.setattr(held, "answer_items", answers)
    return asked


def test_the_first_f1_is_an_alert_in_log_terminal_records_report_and_analysis(
    plan: Plan, lucky: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", "tiny.yaml", "--out", "run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " alert " in line]
    assert A in line and "first-f1" in line and SAID in line
    (alert,) = records(tmp_path / "run", A, "alert")
    assert (alert["monitor"], alert["step"], alert["stopped"]) == ("first-f1", 4, False)
    (event,) = events(tmp_path / "run", "alert")
    assert event["job"] == A and event["message"] == alert["message"]
    assert None not in lucky, "all that was answered was asked by latents"

    assert run(["status", "run"]) == 0
    assert SAID in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert SAID in page and "alert first-f1" in page

    assert run(["analyze", "run", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    (training,) = found["trainings"]
    assert training["job"] == A and training["finished"] and training["first_f1_step"] == 4
    assert [told["monitor"] for told in training["alerts"]] == ["first-f1"]
    assert training["curves"]["f1"]["peak"]["value"] == pytest.approx(0.5 / 3)
    assert run(["analyze", "run"]) == 0
    text = capsys.readouterr().out
    assert "alert first-f1" in text and "step 4" in text and "there is nothing to forecast from" in text


def test_without_a_hit_nothing_is_told(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "tiny.yaml", "--out", "run"]) == 0
    assert " alert " not in capsys.readouterr().out
    assert not events(tmp_path / "run", "alert") and not any(row.alert for row in status(tmp_path / "run"))


def test_the_live_table_keeps_the_alert_over_an_interruption_and_not_over_a_rerun(tmp_path: Path, plan: Plan) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.yaml").write_text(dump_plan(plan))
    log = RunFolder(folder)
    for event, fields in (
        ("job-started", {}), ("progress", {"done": 1, "total": 4, "seconds": 1.0}), ("alert", {"message": "a hit"}),
        ("progress", {"done": 2, "total": 4, "seconds": 2.0}),
    ):  # fmt: skip
        log.event(event, job=A, **fields)

    def alert() -> str:
        (row,) = [row for row in status(folder) if row.job == A]
        return row.alert

    assert alert() == "a hit"
    log.event("run-started", jobs=4)
    log.event("job-started", job=A, attempt=2)
    assert alert() == "a hit", "the checkpoint remembers that it was told"
    output = show.console()
    with output.capture() as shown:
        output.print(show.jobs(status(folder), plan, None))
    assert "a hit" in shown.get()
    log.event("job-rerun", job=A, reason="its records have changed")
    assert alert() == ""


def test_what_is_no_run_of_this_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, stages in (
        ("other", "[{name: train, kind: thoughts.train}]"),
        ("begun", "[{name: a, kind: wire.stage-a}]"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.yaml").write_text(f"stages: {stages}\n")
    for name, said in (
        ("none", "no such run folder"), ("other", "no run of the study `wire`"),
        ("begun", "no training step has been recorded"),
    ):  # fmt: skip
        assert run(["analyze", name]) == 3
        assert said in capsys.readouterr().err
