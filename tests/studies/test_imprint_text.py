"""A tier of plain texts: one mode, no question. Every stage runs, and what cannot be said is said not to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny import records
from tiny_imprint import DOUBLE, tiny_imprint

from stepwell.report import write_report
from stepwell.report.verdicts import verdict_rows
from stepwell.runner import RunResult, run

AT = "mine.tiny"
TEXTS = ("A red fox.", "Two birds.", "One old oak.", "Rain again.")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("text")
    (folder / "notes.txt").write_text("\n\n".join(TEXTS) + "\n")
    tier = f"data.tiers.mine={{task: text, file: {folder / 'notes.txt'}, n: 4}}"
    return run(tiny_imprint("axes.tier=[mine]", tier, model=DOUBLE), folder / "run")


def of(result: RunResult, stage: str, kind: str) -> list[dict[str, Any]]:
    return list(records(result.folder, f"{stage}.{AT}", kind))


def test_every_stage_ends_with_one_mode_and_no_text_lost(whole: RunResult) -> None:
    apart = {"paraphrase.mine", f"paraphrased.{AT}", f"recheck.{AT}"}
    assert {job for job, state in whole.jobs.items() if state != "done"} == apart
    for stage, kind in (("single", "pair"), ("joint", "target"), ("check", "spot"), ("measure", "gain")):
        assert len(of(whole, stage, kind)) == 4
    assert {row["target"] for row in of(whole, "check", "spot")} == set(TEXTS)
    assert {row["mode"] for stage in ("single", "joint") for row in of(whole, stage, "target")} == {"answer"}
    controls = of(whole, "controls", "control")
    assert len(controls) == 12 and {row["control"] for row in controls} == {"own", "random", "shuffled"}


def test_what_needs_a_question_is_undefined_with_a_reason_of_its_own(whole: RunResult) -> None:
    for row in of(whole, "baselines", "baseline"):
        assert row["full_context"] is None and row["text_prompt"] is None
        assert row["why"] == "no full context and no text prompt: this is a text by itself, without a question"
        assert row["bar"] == pytest.approx(0.9 * row["random"])  # the other clause of the bar holds


def test_nothing_pulls_against_one_mode_so_harmony_is_not_asked(whole: RunResult) -> None:
    assert not of(whole, "joint", "conflict")
    assert {verdict.gate for verdict in whole.verdicts} == {"setup", "single", "joint", "leak", "own", "decoded"}
    (row,) = [row for row in verdict_rows(whole.folder) if row.gate == "harmony"]
    assert (row.decision, row.reason) == ("not asked", "No record of `joint` has kind=target, mode=question.")


def test_the_report_says_what_was_not_asked(whole: RunResult) -> None:
    page = write_report(whole.folder).read_text(encoding="utf-8")
    assert "Of mine, tiny no question was asked" in page and "Of mine, tiny every item has one mode" in page
    told = "it was not asked. No record of `joint` has kind=target, mode=question."
    assert told in page.replace("<code>", "`").replace("</code>", "`")
    assert "Capability: accuracy" not in page and "a text by itself, without a question" in page
    found = json.loads((whole.folder / "summary.json").read_text(encoding="utf-8"))
    tables = {table["title"] for section in found["sections"] for table in section["tables"]}
    assert "Loss after another c" in tables and "Bits held" in tables
