"""Questions with written steps and an answer (GSM8K-Aug, ProntoQA) in study `thoughts`: no graph, no two options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tiny import model_folder, records, tiny

from stepwell import kinds
from stepwell.audit.data import FileAudit
from stepwell.audit.run import audit_run
from stepwell.audit.written import CODES, audit_written
from stepwell.cli import run as command
from stepwell.errors import StageFailed, StepwellError
from stepwell.report.audits import evidence
from stepwell.report.cells import Section
from stepwell.report.view import view
from stepwell.runner import RunResult, run
from stepwell.tasks.written import Written, load_written

Entry = dict[str, Any]
ABSENT = {"evaluate": {"forced_correct", "margin", "chain_valid"}, "intervene": {"forced_correct", "margin", "flipped"}}


def gsm(n: int) -> Entry:
    """In the manner of GSM8K-Aug: as many steps as n says, each an equation."""
    steps = [f"<<{600 + n}*{k}={(600 + n) * k}>>" for k in range(2, 3 + n % 3)]
    return {"question": f"A firm has {600 + n} staff. How many shares?", "steps": steps, "answer": f"{600 + n}"}


def spaced(entry: Entry) -> Entry:
    return {**entry, "question": entry["question"].replace(" ", "  ", 1)}


def pronto(n: int) -> Entry:
    steps = ["Alex is a jompus.", "Every jompus is a wumpus."]
    question = f"Every jompus is a wumpus. Alex is {n} and a jompus. True or false: Alex is a wumpus."
    return {"question": question, "steps": steps, "answer": ["True", "False"][n % 2]}


def write(path: Path, entries: list[Entry]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def both(numbers: range) -> list[Entry]:
    return [make(n) for n in numbers for make in (gsm, pronto)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    model_folder(folder / "model")
    return {
        # Each GSM question twice, the second time with another space: both go to one side of the split.
        "train": write(folder / "gsm_train.json", both(range(6)) + [spaced(gsm(n)) for n in range(6)]),
        "test": write(folder / "gsm_test.json", both(range(40, 43))),
        "model": folder / "model",
    }


def overrides(files: dict[str, Path]) -> tuple[str, ...]:
    return (
        "engine=inline",
        "data.format=steps",
        f"data.train={files['train']}",
        f"data.test={files['test']}",
        "data.n_steer=4",
        f"model.model={{kind: text, name: {files['model']}}}",
        "intervene.families=[zeroed, order, between, transplant-matched, transplant-unmatched, thoughts]",
        "intervene.thoughts=[0]",
        "model.selftest_steps=1",
    )


GATES = ("gates.causal-sanity=null", "gates.difference=null", "gates.equivalence=null")
LEFT_OUT = ("probe=null", "trace=null", *GATES)


@pytest.fixture(scope="module")
def whole(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    plan = tiny(*overrides(files), *LEFT_OUT, text=True, gates=())
    return run(plan, tmp_path_factory.mktemp("steps") / "run")


def test_files_without_graphs_go_the_whole_way(whole: RunResult) -> None:
    assert set(whole.jobs.values()) == {"done"}
    assert [r["code"] for r in records(whole.folder, "audit", "audit") if r["set"] in ("steer", "test")] == [
        "clean"
    ] * 2
    sets = {r["set"]: r["n"] for r in records(whole.folder, "data", "dataset")}
    read = {name: json.loads((whole.folder / "artifacts" / "data" / f"{name}.json").read_text()) for name in sets}
    assert sets == {name: len(entries) for name, entries in read.items()} and sets["steer"] == 4
    asked = {name: {" ".join(entry["question"].split()) for entry in entries} for name, entries in read.items()}
    assert not asked["steer"] & asked["train"] and len(asked["steer"]) == 4
    assert asked["steer"] | asked["train"] == {entry["question"] for entry in both(range(6))}
    assert sum(":" not in question for question in asked["steer"]) > 0, "of the questions that are given twice"
    assert read["test"] == both(range(40, 43))
    for arm in ("cot", "continuous"):
        found = records(whole.folder, f"evaluate.{arm}.0", "item")
        assert [(r["answer"], r["hops"]) for r in found] == [(e["answer"], len(e["steps"])) for e in read["test"]]
        for record in found:
            assert isinstance(record["correct"], bool)
            assert all(record[field] is None for field in ABSENT["evaluate"])
    (check,) = [c for c in records(whole.folder, "train.continuous.0", "check") if c["name"] == "steps-removed"]
    assert not check["passed"] and "training items have more than the 2 steps that the stages remove" in check["detail"]
    assert int(check["detail"].split()[0]) == sum(len(e["steps"]) > 2 for e in read["train"]) > 0
    assert not [c for c in records(whole.folder, "train.cot.0", "check") if c["name"] == "steps-removed"]


def test_interventions_compare_written_answers_alone(whole: RunResult) -> None:
    found = records(whole.folder, "intervene.continuous.0", "intervention")
    assert {r["family"] for r in found} == {"clean", "zeroed", "order", "between", "thoughts"}
    for record in found:
        assert kinds.kind("thoughts.intervene").yields["intervention"] <= set(record)
        assert all(record[field] is None for field in ABSENT["intervene"])
        assert isinstance(record["correct"], bool) and isinstance(record["answer_changed"], bool)


def test_the_report_says_what_is_absent_and_shows_no_figure_for_it(whole: RunResult) -> None:
    sections = {section.key: section for section in view(whole.folder).sections}

    def texts(section: Section) -> str:
        charts = [chart.note + str(chart.rules) for chart in section.charts]
        heads = [column.name for table in section.tables for column in table.columns]
        return " ".join([*section.lines, *charts, *(table.title for table in section.tables), *heads, section.missing])

    accuracy = sections["accuracy"]
    assert [table.title for table in accuracy.tables] == ["Set test: free decoding, accuracy in %"]
    assert [column.name for column in accuracy.tables[0].columns] == ["arm", "all", "1 step", "2 steps", "3 steps"]
    assert "there is no forced choice" in texts(accuracy) and "chance between" not in texts(accuracy)
    assert {row.group for row in accuracy.tables[0].rows} == {"arms"}
    assert "written answer that differs" in texts(sections["interventions"])
    assert "forced choice that" not in texts(sections["interventions"])
    assert "no entities to probe for" in texts(sections["probes"]) and "no graph to corrupt" in texts(
        sections["tracing"]
    )
    items = sections["browser"].items
    assert [item.question for item in items[:2]] == [gsm(40)["question"], pronto(40)["question"]]
    assert all(item.graph is None and item.about.split()[1] in ("step", "steps") for item in items)
    assert "facts as a graph" not in texts(sections["browser"])
    assert audit_run(evidence(whole.folder)) == ()


@pytest.mark.parametrize(
    ("left_out", "more", "message"),
    [
        (LEFT_OUT[1:], (), "stages.probe.params: items of format `steps` have no graph whose entities could be probed"),
        (LEFT_OUT[::2], (), "stages.trace.params: items of format `steps` have no graph to corrupt, nor two options"),
        (
            LEFT_OUT[:3],
            (),
            "gates.difference.criteria.1.metric: no record of stage intervene will have `forced_correct`: items of "
            "format `steps` have no two options; ask for another or leave it out",
        ),
        (LEFT_OUT, ("intervene.decode=false",), "without a written answer nothing is asked; set it to true"),
        (
            LEFT_OUT,
            ("model.model={kind: symbols}",),
            "a model of symbols reads graphs, one from scratch knows the words",
        ),
        (LEFT_OUT, ("model.model={kind: text, name: null}",), "name a model with a tokenizer (model.model.name)"),
        (LEFT_OUT, ("data.test=null",), "generates nothing: give the files `train`, and `valid` or `test`"),
        (LEFT_OUT, ("data.families={dag: 4}",), "`families` and `swapped` are made of graphs"),
    ],
)
def test_what_needs_a_graph_or_options_is_refused_before_the_run(
    files: dict[str, Path], left_out: tuple[str, ...], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StepwellError) as caught:
        tiny(*overrides(files), *left_out, *more, text=True)
    assert message in str(caught.value)


def test_a_gate_that_asks_for_written_answers_is_taken(files: dict[str, Path]) -> None:
    asked = [f"gates.difference.criteria.{n}.metric=correct" for n in (1, 2)]
    tiny(*overrides(files), *LEFT_OUT[:3], *asked, text=True)


def test_items_longer_than_the_model_stop_the_training_before_it_begins(files: dict[str, Path], tmp_path: Path) -> None:
    long = {"question": "Why? " * 120, "steps": ["<<1=1>>"], "answer": "1"}
    path = write(tmp_path / "long.json", [*both(range(8)), long])
    plan = tiny(*overrides(files), *LEFT_OUT, f"data.train={path}", text=True, arms=("continuous",), gates=())
    message = r"training item train-\d+ takes \d+ tokens, and the model knows 256 positions"
    with pytest.raises(StageFailed, match=message):
        run(plan, tmp_path / "run")


FAULTS: tuple[tuple[str, int, Callable[[list[Entry]], Any]], ...] = (
    ("missing-field", 2, lambda entries: (entries[1].pop("answer"), entries[4].update(answer=""))),
    ("missing-field", 1, lambda entries: entries[2].update(steps="<<1=1>>")),
    ("no-steps", 2, lambda entries: (entries[3].update(steps=[]), entries[5].update(steps=["1", " "]))),
    ("duplicate-item", 1, lambda entries: entries.append({**entries[0], "question": f" {entries[0]['question']} "})),
)


def audited(tmp_path: Path, *sets: list[Entry]) -> list[FileAudit]:
    return audit_written([write(tmp_path / f"{place}.json", entries) for place, entries in enumerate(sets)])


@pytest.mark.parametrize(("code", "count", "plant"), FAULTS)
def test_every_planted_fault_is_found_and_none_in_clean_files(
    tmp_path: Path, code: str, count: int, plant: Callable[[list[Entry]], Any]
) -> None:
    entries = both(range(4))
    assert audited(tmp_path, entries, both(range(4, 8)))[0].ok
    plant(entries)
    (finding,) = audited(tmp_path, entries)[0].findings
    assert (finding.code, finding.count, finding.of) == (code, count, len(entries))


def test_overlap_is_found_in_both_files_and_another_answer_is_told(tmp_path: Path) -> None:
    one, two = both(range(4)), [*both(range(4, 6)), gsm(1)]
    found = audited(tmp_path, one, two)
    assert [[(f.code, f.items) for f in audit.findings] for audit in found] == [
        [("split-overlap", ("0-00002",))],
        [("split-overlap", ("1-00004",))],
    ]
    (finding,) = audited(tmp_path, [gsm(1), {**gsm(1), "answer": "7"}])[0].findings
    assert finding.example == "0-00001: same as 0-00000, with another answer"
    assert set(CODES) == {code for code, *_ in FAULTS} | {"split-overlap"}


def test_the_command_line_audits_either_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "gsm.json", both(range(3))))
    assert command(["audit", "data", path, "--format", "steps"]) == 0
    assert command(["audit", "data", path]) == 1
    assert "unknown format `gsm8k`" in refused(capsys, ["audit", "data", path, "--format", "gsm8k"], 3)


def test_a_file_that_cannot_be_used_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    for entries, message in (
        ([{"question": "Why?", "answer": "1"}], "item 0: steps missing or of another type"),
        ([gsm(1), {**gsm(2), "answer": 604}], "item 1: answer missing or of another type"),
    ):
        with pytest.raises(StepwellError) as caught:
            load_written(write(tmp_path / "train.json", entries))
        assert message in str(caught.value)
    path = write(tmp_path / "train.json", both(range(2)))
    plan = tiny(*overrides(files), *LEFT_OUT, f"data.train={path}", text=True, arms=("cot",))
    with pytest.raises(StageFailed, match="4 items are to steer the curriculum, and the file has 4 questions"):
        run(plan, tmp_path / "run")


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("360", ("360", " 360 ", "360.0", "$360", "360."), ("36", "0360 or 361", "600-240=360", "True", "")),
        ("1,000", ("1000", "1,000.00"), ("1", "1,0000")),
        ("-2.5", ("-2.50", "-5/2"), ("2.5",)),
        ("True", ("True",), ("true", "False", "True or false", "1")),
    ],
)
def test_an_answer_is_right_as_the_same_text_or_number(
    answer: str, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    item = Written(id="a", question="?", steps=("<<1=1>>",), answer=answer)
    assert [said for said in right if not item.is_right(said)] == []
    assert [said for said in wrong if item.is_right(said)] == []
