"""The official file format: read, written, refused with reasons; graphs recovered from text; valid chains."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa import PROSQA, Item, chain_is_valid, generate_items, load_items, pack, write_items

ENTRY = generate_items("mini", 1, seed=0)[0].to_json()
TEXT = {key: ENTRY[key] for key in ("question", "answer", "steps")}


def write(folder, found, name="data.json"):
    path = folder / name
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def test_official_file_is_read_and_written_back_unchanged(shared_data, tmp_path):
    path = shared_data("prosqa/valid.json")
    items = load_items(path)
    assert len(items) == 300 and items[7].id == "valid-00007"
    write_items(tmp_path / "out.json", items)
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(path.read_text())
    assert all(chain_is_valid(item, item.steps) for item in items)
    assert sum(item.target_first for item in items) == 144


@pytest.mark.parametrize("family", PROSQA.families)
def test_written_items_are_read_back(family, tmp_path):
    items = PROSQA.generate(family, 30, 1)
    PROSQA.write(tmp_path / "x.json", items)
    read = PROSQA.load(tmp_path / "x.json")
    assert [replace(item, id="") for item in read] == [replace(item, id="") for item in items]


def named(item: Item):
    symbols = item.idx_to_symbol
    return item.facts, symbols[item.root], symbols[item.target], symbols[item.neg_target], item.options()


@pytest.mark.parametrize("family", PROSQA.families)
def test_graph_is_recovered_from_the_text_alone(family, tmp_path):
    items = generate_items(family, 30, seed=1)
    bare = [{key: item.to_json()[key] for key in TEXT} for item in items]
    for item, read in zip(items, load_items(write(tmp_path, bare)), strict=True):
        assert named(read) == named(item)
        assert all(parent < child for parent, child in read.edges)


def test_options_are_sentences(tmp_path):
    item = load_items(write(tmp_path, [TEXT]))[0]
    assert item.options()[0] == item.answer != item.options()[1]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("", "the file is empty"),
        ("[", "not JSON: line 1, column 2"),
        ("[]", "the list holds no items"),
        ({"data": []}, "another format: one dict"),
        ([1, 2], "another format: a list with other things than objects"),
        ([ENTRY, {**TEXT, "steps": "one"}], "item 1: steps missing or of another type"),
        ([{"question": "a", "steps": []}], "item 0: answer missing or of another type"),
        ([{key: ENTRY[key] for key in ENTRY if key != "root"}], "item 0: root missing"),
        ([{**TEXT, "question": "Why?"}], "item 0: the question does not end in a choice: 'Why\\?'"),
        ([{**TEXT, "answer": "Wren is a dumpus."}], "item 0: the answer 'Wren is a dumpus.' is not among the options"),
        ([{**ENTRY, "target": 0}], "item 0: target 'Wren' and neg_target '.*' are not the right and the wrong one"),
        ([{**ENTRY, "edges": [[0, 99]]}], "item 0: 99 is not the index of one of the 10 nodes"),
        ([{**ENTRY, "edges": [[0, 1, 2]]}], "item 0: edges is not a list of pairs"),
        ([{**ENTRY, "root": True}], "item 0: True is not the index"),
        ([{**ENTRY, "idx_to_symbol": None}], "item 0: idx_to_symbol is not a list of names"),
    ],
)
def test_bad_files_are_refused_with_the_reason(found, message, tmp_path):
    path = write(tmp_path, found)
    with pytest.raises(StepwellError, match=message) as error:
        load_items(path)
    assert str(path) in str(error.value) and "Way out: " in str(error.value) and error.value.exit_code == 3


def test_missing_file_folder_and_foreign_bytes_are_refused(tmp_path):
    with pytest.raises(StepwellError, match="there is no such file"):
        load_items(tmp_path / "none.json")
    with pytest.raises(StepwellError, match="cannot be read"):
        load_items(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StepwellError, match="cannot be read"):
        load_items(tmp_path / "bytes.json")


def test_unwritable_file_is_refused(tmp_path):
    with pytest.raises(StepwellError, match="cannot be written: No such file or directory"):
        write_items(tmp_path / "none" / "x.json", [])


CHAINED = Item(
    id="x",
    question="Tom is a dumpus. Tom is a yumpus. Every dumpus is a lempus. Every yumpus is a lempus. "
    "Every lempus is a rompus. Sam is a wumpus. Is Tom a rompus or wumpus?",
    answer="Tom is a rompus.",
    steps=("Tom is a dumpus.", "Every dumpus is a lempus.", "Every lempus is a rompus."),
    idx_to_symbol=("Tom", "Sam", "dumpus", "yumpus", "lempus", "rompus", "wumpus"),
    edges=((0, 2), (0, 3), (2, 4), (3, 4), (4, 5), (1, 6)),
    root=0,
    target=5,
    neg_target=6,
)


@pytest.mark.parametrize(
    ("steps", "valid"),
    [
        ("Tom is a dumpus.\nEvery dumpus is a lempus.\nEvery lempus is a rompus.", True),
        ("Tom is a yumpus. Every yumpus is a lempus. Every lempus is a rompus.\n", True),
        (["Tom is a yumpus.", " Every yumpus is a lempus.", "Every lempus is a rompus."], True),
        ("", False),
        ([], False),
        ("Tom is a dumpus.\nEvery dumpus is a lempus.", False),
        ("Every dumpus is a lempus.\nEvery lempus is a rompus.", False),
        ("Tom is a dumpus.\nEvery lempus is a rompus.", False),
        ("Tom is a dumpus.\nEvery dumpus is a rompus.", False),
        ("Tom is a rompus.", False),
        ("Sam is a wumpus.", False),
        ("Tom is a dumpus.\nEvery dumpus is a lempus.\nEvery lempus is a rompus", False),
        ("Tom is a dumpus. Every dumpus is a lempus. Every lempus is a rompus. Tom is a yumpus.", False),
        ("dumpus dumpus dumpus .", False),
    ],
)
def test_any_path_of_facts_from_root_to_target_is_a_valid_chain(steps, valid):
    assert chain_is_valid(CHAINED, steps) is valid


def test_packing_refuses_steps_that_name_no_node():
    with pytest.raises(StepwellError, match=r"item x: the step 'Tom is a hero\.' names no node"):
        pack([replace(CHAINED, steps=("Tom is a hero.",))])
