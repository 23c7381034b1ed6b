from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stepwell
import toy_kinds
from stepwell.cli import run
from stepwell.cli.live import SECONDS_BETWEEN_LOOKS, shown

HEAVY = ("torch", "transformers", "scipy", "plotly", "numpy", "pandas", "jinja2")
REPEATS = 5


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a plan of toy stages in it, and nothing of this machine's calibration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    (tmp_path / "toy.yaml").write_text(toy_kinds.PLAN)
    return tmp_path


def best_seconds(*command: str) -> tuple[float, str]:
    """The fastest of several runs (the others waited for somebody else), and what it printed."""
    times, printed = [], ""
    for _ in range(REPEATS):
        start = time.perf_counter()
        printed = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout
        times.append(time.perf_counter() - start)
    return min(times), printed


# ---- light


def test_importing_takes_less_than_0_3_seconds_and_nothing_heavy() -> None:
    code = f"import stepwell, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    seconds, heavy = best_seconds("-c", code)
    assert heavy.strip() == ""
    assert seconds < 0.3


def test_help_takes_less_than_1_second_and_nothing_heavy() -> None:
    code = (
        "import sys; from stepwell.cli import run; run(['--help']);"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    seconds, printed = best_seconds("-c", code)
    assert printed.rstrip().endswith("heavy:")
    assert "import-coconut" in printed
    assert seconds < 1.0


def test_planning_loads_nothing_heavy(toy: Path) -> None:
    code = (
        "import sys, toy_kinds; from stepwell.cli import run; run(['plan', 'toy.yaml', '--rung', 'demo']);"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.rstrip().endswith("heavy:"), done.stdout + done.stderr


def test_every_exported_name_leads_somewhere() -> None:
    assert stepwell.__version__ == "0.1.0"
    assert set(dir(stepwell)) == set(stepwell.__all__)
    for name in stepwell.__all__:
        assert getattr(stepwell, name) is not None
    with pytest.raises(AttributeError, match="module 'stepwell' has no attribute 'nothing'"):
        stepwell.nothing  # noqa: B018


# ---- usage errors: exit code 3, one message, no traceback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: stepwell"),
        (["nothing"], "No such command 'nothing'"),
        (["plan"], "Missing argument 'PLAN'"),
        (["plan", "toy.yaml", "--nothing"], "No such option"),
        (["plan", "toy.yaml", "--hourly-price", "x"], "--hourly-price"),
        (["plan", "toy.yaml"], "this plan has rungs, and none was named; rungs: demo, hero"),
        (["plan", "toy.yaml", "--rung", "demoo"], "unknown rung `demoo`; rungs: demo, hero; did you mean `demo`?"),
        (["plan", "gone.yaml", "--rung", "demo"], "gone.yaml: no such file"),
        (
            ["plan", "toy.yaml", "--rung", "demo", "train.lrr=1"],
            "train.lrr=1: stages.train.params.lrr: unknown key",
        ),
        (["plan", "toy.yaml", "--rung", "demo", "--device", "h10"], "unknown device `h10`"),
        (["run", "toy.yaml", "--rung", "demo", "data.valid=gone.json"], "stages.data.params.valid: no such file: "),
        (["status", "nowhere"], "no run lies here"),
        (["gate", "nowhere"], "no run lies here"),
        (["import-coconut", "gone.yaml"], "gone.yaml: no such file"),
        (["data", "prosqa", "--family", "id", "--n", "0", "--seed", "0", "--out", "x.json"], "--n"),
        (["data", "prosqa", "--family", "9hop", "--n", "1", "--seed", "0", "--out", "x.json"], "9hop"),
        (["audit", "data", "gone.json"], "gone.json"),
    ],
)
def test_usage_errors_are_one_message_and_exit_code_3(toy: Path, capsys, arguments: list[str], message: str) -> None:
    assert run(arguments) == 3
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
    assert "Traceback" not in printed.err


def test_the_real_process_exits_with_3_too(toy: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "stepwell", "plan", "toy.yamll"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("stepwell: unknown plan `toy.yamll`; shipped plans: ")
    assert "\n  Way out: " in done.stderr
    assert done.stdout == ""


def test_an_unwritable_place_is_one_message(toy: Path, capsys) -> None:
    (toy / "file").write_text("")
    assert run(["run", "toy.yaml", "--rung", "demo", "--out", "file/run"]) == 3
    error = capsys.readouterr().err
    assert "file" in error and "Traceback" not in error


# ---- plan


def test_plan_shows_stages_gates_cost_and_runs_nothing(toy: Path, capsys) -> None:
    arguments = ["train.shape.width=1e15", "--device", "h100", "--hourly-price", "2.5"]
    assert run(["plan", "toy.yaml", "--rung", "demo", *arguments]) == 0
    printed = capsys.readouterr().out
    for text in (
        "Does it work?",
        "arm: cot, shared  seed: 0, 1",
        "accuracy of train (kind=validation, arm=cot, epoch<=10, last) >= 0.7, 95%",
        "inconclusive -> phase2",
        "more       mock.train      1   evaluate, data (on phase2)",
        "on h100, at 30% of its peak on the data sheet",
        "without an estimate, and not in the sums: data",
    ):
        assert text in printed
    # 2 FLOP x 1e15 x 3 steps x 10 items x (2 + 2 x 2) jobs of train, and the little that evaluate takes.
    assert "FLOP   3.6e+17" in printed
    assert f"price  {3.6e17 / (67e12 * 0.3) / 3600 * 2.5:.2f} USD" in printed
    assert not (toy / "runs").exists()


def test_texts_from_a_plan_are_shown_as_they_are(toy: Path, capsys) -> None:
    (toy / "toy.yaml").write_text(toy_kinds.PLAN.replace("Does it learn?", "'Is [bold]it[/bold] :smile: [/x]?'"))
    assert run(["plan", "toy.yaml", "--rung", "demo"]) == 0
    assert "Is [bold]it[/bold] :smile: [/x]?" in capsys.readouterr().out


def test_plans_lists_what_ships(toy: Path, capsys) -> None:
    from stepwell.plan import shipped_plans

    assert run(["plans"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in shipped_plans())


# ---- run, status, gate, report


@pytest.mark.parametrize(
    ("accuracy", "decision", "code"), [(0.9, "go", 0), (0.2, "no-go", 1), (0.7, "inconclusive", 2)]
)
def test_the_exit_code_is_the_verdict(toy: Path, capsys, accuracy: float, decision: str, code: int) -> None:
    assert run(["run", "toy.yaml", "--rung", "demo", f"train.accuracy={accuracy}", "--quiet"]) == code
    printed = capsys.readouterr().out
    assert f"decision: {decision}" in printed
    assert "report: runs/toy-demo/report.html" in printed
    assert (toy / "runs/toy-demo/report.html").is_file()
    assert run(["gate", "runs/toy-demo"]) == code
    assert run(["gate", "runs/toy-demo", "early"]) == code
    assert run(["gate", "runs/toy-demo", "erly"]) == 3
    assert "no gate `erly` in this run" in capsys.readouterr().err
    assert run(["status", "runs/toy-demo"]) == 0
    printed = capsys.readouterr().out
    assert decision in printed and "train.shared.1" in printed
    assert run(["report", "runs/toy-demo"]) == 0


def test_events_are_shown_while_it_runs(toy: Path, capsys) -> None:
    assert run(["run", "toy.yaml", "--rung", "demo", "--out", "here"]) == 0
    printed = capsys.readouterr().out
    assert "job-done       train.cot.0" in printed
    assert "gate-decided   early  go  next" in printed
    assert run(["run", "toy.yaml", "--rung", "demo", "--out", "here"]) == 0
    assert "job-started" not in capsys.readouterr().out


def test_events_are_shown_where_the_run_began_though_a_job_takes_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.jsonl").touch()
    with shown(tmp_path), contextlib.redirect_stdout(io.StringIO()) as log:  # as the inline engine does for a job
        with (tmp_path / "events.jsonl").open("a") as events:
            events.write('{"time": "2026-01-01T10:00:00.000Z", "event": "job-done", "job": "a"}\n')
        time.sleep(2 * SECONDS_BETWEEN_LOOKS)
    assert "job-done       a" in capsys.readouterr().out
    assert log.getvalue() == ""


def test_an_override_of_a_gate_needs_a_run_and_a_reason_and_is_shown(toy: Path, capsys) -> None:
    start = ["run", "toy.yaml", "--rung", "demo", "train.accuracy=.2", "--quiet"]
    assert run([*start, "--override-gate", "early=go", "--reason", "why not"]) == 3
    assert "no run has begun here" in capsys.readouterr().err
    assert run(start) == 1
    assert run([*start, "--override-gate", "early=go"]) == 3
    assert "a gate is overridden without a reason" in capsys.readouterr().err
    for wrong in ("early", "early=maybe", "late=go"):
        assert run([*start, "--override-gate", wrong, "--reason", "why not"]) == 3
        assert "expected GATE=DECISION" in capsys.readouterr().err
    # The verdict stays what it is; only the way it leads is another.
    assert run([*start, "--override-gate", "early=go", "--reason", "the pilot is known to be weak"]) == 1
    printed = capsys.readouterr().out
    assert "overridden: the pilot is known to be weak" in printed
    verdict = json.loads((toy / "runs/toy-demo/records/gates.jsonl").read_text())
    assert (verdict["decision"], verdict["route"]) == ("no-go", "next")
    assert (toy / "runs/toy-demo/records/evaluate.cot.jsonl").exists()


def test_a_gate_that_is_not_decided_is_inconclusive_and_a_failed_stage_is_4(toy: Path, capsys, monkeypatch) -> None:
    def broken(params: toy_kinds.TrainParams, ctx: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(toy_kinds, "train", broken)
    assert run(["run", "toy.yaml", "--rung", "demo", "--quiet"]) == 4
    assert "planted" in capsys.readouterr().err
    assert run(["gate", "runs/toy-demo"]) == 4
    assert "not decided: early" in capsys.readouterr().out
    assert run(["status", "runs/toy-demo"]) == 0
    assert "failed" in capsys.readouterr().out


# ---- data, import-coconut, calibrate


def test_generated_items_audit_clean_and_a_planted_fault_is_found(toy: Path, capsys) -> None:
    assert run(["data", "prosqa", "--family", "id", "--n", "60", "--seed", "1", "--out", "items.json"]) == 0
    assert "60 items of family id, seed 1: items.json" in capsys.readouterr().out
    assert run(["audit", "data", "items.json", "--json"]) == 0
    (audit,) = json.loads(capsys.readouterr().out)
    assert (audit["n"], audit["ok"], audit["findings"]) == (60, True, [])
    assert audit["shortcuts"]
    items = json.loads((toy / "items.json").read_text())
    items[3]["answer"] = items[3]["answer"].rsplit(" ", 1)[0] + " nothing."
    (toy / "items.json").write_text(json.dumps(items))
    assert run(["audit", "data", "items.json"]) == 1
    assert "answer-not-an-option" in capsys.readouterr().out


def test_importing_metas_arguments_prints_overrides_and_notes(toy: Path, capsys) -> None:
    (toy / "args.yaml").write_text("coconut: True\nlr: 1e-4\nbatch_size_training: 32\nproject: x\n")
    assert run(["import-coconut", "args.yaml", "--gpus", "2"]) == 0
    printed = capsys.readouterr()
    assert {"train.lr=0.0001", "train.accumulation=2"} <= set(printed.out.splitlines())
    assert "note: The file trains the arm `continuous`" in printed.err
    assert "note: Effective batch 64 = 32 per GPU x 1 accumulated x 2 GPUs." in printed.err


def test_calibrating_prints_what_was_measured_and_plan_uses_it(toy: Path, capsys) -> None:
    assert run(["calibrate", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"
    assert run(["plan", "toy.yaml", "--rung", "demo", "--device", "cpu"]) == 0
    assert "on cpu, at 50% of its measured matmul rate" in capsys.readouterr().out


# ---- live


def test_the_live_table_can_be_drawn_at_any_time(toy: Path) -> None:
    from stepwell.cli.show import console, duration, jobs
    from stepwell.plan import load_plan
    from stepwell.runner import JobStatus

    rows = [
        JobStatus(job="a", stage="train", axes={}, state="waiting"),
        JobStatus(
            job="b", stage="train", axes={}, state="running", done=5, total=20, seconds=100.0, fields={"loss": 0.123456}
        ),
        JobStatus(job="c", stage="train", axes={}, state="failed", seconds=7.0, message="[red]cause\nmore"),
    ]
    output = console()
    with output.capture() as captured:
        overrides = ["hourly_price=36", "budget.price=90"]
        output.print(jobs(rows, load_plan(toy / "toy.yaml", rung="demo", overrides=overrides), 107 / 3600))
    text = captured.get()
    assert "0 of 3 jobs done" in text and "1.07 USD so far of a budget of 90 USD" in " ".join(text.split())
    assert "5.0 min, 3.00 USD" in text  # 100 s for 5 steps: 300 s for the 15 that are left
    assert "loss 0.1235" in text
    assert "[red]cause" in text and "more" not in text
    assert [duration(s) for s in (None, 0, 0.5, 45, 90, 7200)] == [
        "unknown",
        "0 s",
        "0.5 s",
        "45 s",
        "1.5 min",
        "2.0 h",
    ]
