"""The summary for programs: the report's verdicts and tables as numbers, the same bytes each time, and nothing lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imprint_records as made
import pytest

from stepwell.errors import StepwellError
from stepwell.report import write_report
from stepwell.report.cells import Cell, Column, Row, Section, Table, dash
from stepwell.report.summary import summary
from stepwell.report.verdicts import verdict_rows
from stepwell.report.view import Headline, Report, view

NewRun = Callable[..., Any]


def strict(text: str) -> dict[str, Any]:
    """JSON as others read it: NaN and Infinity are none."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def summarised(folder: Path) -> dict[str, Any]:
    write_report(folder)
    return strict((folder / "summary.json").read_text(encoding="utf-8"))


def tables_of(found: dict[str, Any], key: str) -> dict[str, Any]:
    (section,) = [section for section in found["sections"] if section["key"] == key]
    return {table["title"]: table for table in section["tables"]}


@pytest.mark.parametrize("study", ["thoughts", "imprint"])
def test_every_table_of_the_report_is_there_with_its_numbers(new_run: NewRun, study: str):
    folder = _folder(new_run(), study)
    found, shown = summarised(folder), view(folder)
    assert found["study"] == study and found["answer"] == shown.headline.answer
    decided = [(row["gate"], row["decision"], row["n_to_decide"]) for row in found["verdicts"]]
    assert decided == [(row.gate, row.decision, row.n_to_decide) for row in verdict_rows(folder)] and decided
    sections = [section for section in shown.sections if section.key != "verdicts"]
    assert [section["key"] for section in found["sections"]] == [section.key for section in sections]
    numbers = 0
    for section, written in zip(sections, found["sections"], strict=True):
        for table, rows in zip(section.tables, written["tables"], strict=False):
            assert rows["title"] == table.title and len(rows["rows"]) == len(table.rows)
            assert {len(row) for row in rows["rows"]} <= {len(table.columns)}
            numbers += sum(cell is not None and "low" in cell for row in rows["rows"] for cell in row)
    assert numbers > 10
    size = (folder / "summary.json").stat().st_size
    assert 1_000 < size < 400_000


def test_the_same_folder_gives_the_same_bytes(new_run: NewRun):
    folder = new_run().whole()
    write_report(folder)
    first = (folder / "summary.json").read_bytes()
    write_report(folder)
    assert (folder / "summary.json").read_bytes() == first


def test_a_share_stands_with_its_interval_as_wilson_gives_it(new_run: NewRun):
    folder = _folder(new_run(), "imprint")
    found = tables_of(summarised(folder), "baselines")
    table = next(table for title, table in found.items() if title.startswith("Mean loss"))
    random = next(row for row in table["rows"] if row[1]["text"] == "random vectors")
    assert (
        random[0]["text"] == made.TIER and random[0]["beside"] == made.MODEL
    )  # said once on the page, here on each line
    assert random[2]["low"] <= random[2]["value"] <= random[2]["high"]


def report_of(*rows: Row, columns: tuple[Column, ...]) -> Report:
    section = Section(key="s", title="S", tables=(Table(title="T", columns=columns, rows=rows),))
    answer = Headline(tone="muted", answer="", may=(), may_not=())
    return Report(title="", study="", rung="", question="", headline=answer, arms=(), sections=(section,))


def test_spans_are_filled_and_texts_of_numeric_columns_are_read():
    columns = (Column(name="a"), Column(name="b", numeric=True), Column(name="c", numeric=True))
    rows = (
        Row(cells=(Cell(text="7", rows=2), Cell(text="\u22121,234"), Cell(text="3 of 4", count="n 4"))),
        Row(cells=(dash("not run"), Cell(text="0.5", value=0.4999, low=0.25, high=math.inf, interval="x"))),
        Row(cells=(Cell(text="wide", columns=2), Cell(text="2.5", interval="seconds"))),
    )
    (section,) = strict(summary(report_of(*rows, columns=columns), ()))["sections"]
    assert section["tables"][0]["rows"] == [
        [{"text": "7"}, {"value": -1234}, {"text": "3 of 4", "count": "n 4"}],
        [{"text": "7"}, {"value": None, "why": "not run"}, {"value": 0.4999, "low": 0.25, "high": None}],
        [{"text": "wide"}, None, {"value": 2.5, "beside": "seconds"}],
    ]


def test_what_a_foreign_record_holds_is_still_json(new_run: NewRun):
    run = new_run()
    folder = run.whole()
    gates = folder / "records" / "gates.jsonl"
    lines = [json.loads(line) for line in gates.read_text().splitlines()]
    lines[0]["criteria"][0] |= {"value": math.nan, "high": math.inf, "reason": "\ud800"}
    gates.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = summarised(folder)["verdicts"][0]["findings"][0]
    assert first["value"] is None and first["high"] is None


def test_a_run_without_anything_has_a_summary(tmp_path: Path):
    (tmp_path / "records").mkdir()
    found = summarised(tmp_path)
    assert found["verdicts"] == [] and found["study"] == ""


def test_a_summary_that_cannot_be_written_leaves_the_old_one(new_run: NewRun, monkeypatch: pytest.MonkeyPatch):
    folder = new_run().whole()
    write_report(folder)
    before = (folder / "summary.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StepwellError, match="cannot be written"):
        write_report(folder)
    assert (folder / "summary.json").read_bytes() == before and not list(folder.glob(".summary*"))


def _folder(run: Any, study: str) -> Path:
    return run.whole() if study == "thoughts" else made.whole(run)
