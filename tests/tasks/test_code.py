"""HumanEval and MBPP: the files are read, the references pass, and wrong answers do not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sandbox_means import need_sandbox
from stepwell.errors import StepwellError
from stepwell.sandbox import execute
from stepwell.sandbox.check import positive_control
from stepwell.tasks.code import MBPP_SPLITS, load_humaneval, load_mbpp, program, references

MADE = {
    "task_id": "Made/0", "prompt": 'def twice(x):\n    """Twice x."""\n', "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip
MADE_MBPP = {
    "task_id": 11, "text": "Write twice.", "code": "def twice(x):\r\n  return 2 * x", "test_setup_code": "",
    "test_list": ["assert twice(2) == 4", "assert set([twice(1)]) == {2}"], "challenge_test_list": [],
}  # fmt: skip


def written(path: Path, *entries: dict) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_humaneval_is_read_whole(shared_data):
    problems = load_humaneval(shared_data("code/HumanEval.jsonl.gz"))
    assert len(problems) == 164
    assert problems[0].entry_point == "has_close_elements"
    assert problems[0].tests.endswith("\n\ncheck(has_close_elements)\n")


def test_mbpp_is_read_by_splits(shared_data):
    path = shared_data("code/mbpp.jsonl")
    sizes = {split: len(load_mbpp(path, split=split)) for split in (*MBPP_SPLITS, None)}
    assert sizes == {"prompt": 10, "test": 500, "validation": 90, "train": 374, None: 974}
    first = load_mbpp(path, split="prompt")[0]
    assert (first.id, first.entry_point) == ("MBPP/1", "min_cost")
    assert first.question.count("assert") == 1 and first.tests.count("assert") == 3
    assert load_mbpp(path, split="prompt", shown_tests=3)[0].question.count("assert") == 3


def test_a_sample_of_the_references_passes(shared_data):
    need_sandbox()
    humaneval = load_humaneval(shared_data("code/HumanEval.jsonl.gz"))
    mbpp = {problem.id: problem for problem in load_mbpp(shared_data("code/mbpp.jsonl"), split=None)}
    # Helpers of the prompt in the tests, floats, a setup with objects, a type handed over, a builtin's name.
    chosen = [humaneval[number] for number in (4, 32, 38, 50)] + [mbpp[f"MBPP/{n}"] for n in (2, 126, 367, 533)]
    assert positive_control(references(chosen)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_references_of_humaneval_pass(shared_data):
    need_sandbox()
    programs = references(load_humaneval(shared_data("code/HumanEval.jsonl.gz")))
    assert len(programs) == 164 and positive_control(programs) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_references_of_mbpp_pass(shared_data):
    """None of the 974 is broken here; MBPP/123 needs seconds, and has them in `positive_control`."""
    need_sandbox()
    programs = references(load_mbpp(shared_data("code/mbpp.jsonl"), split=None))
    assert len(programs) == 974 and positive_control(programs) == []


def test_wrong_answers_fail_and_right_ones_pass(tmp_path):
    need_sandbox()
    humaneval = load_humaneval(written(tmp_path / "made.jsonl.gz", MADE))[0]
    mbpp = load_mbpp(written(tmp_path / "mbpp.jsonl", MADE_MBPP))[0]
    answers = [
        (humaneval, "    return x + x\n", True),
        (humaneval, "```python\ndef twice(x):\n    return x\n```", False),
        (humaneval, "I do not know.", False),
        (mbpp, "def twice(x):\n    return x + x", True),
        (mbpp, "def double(x):\n    return x + x", False),
    ]
    programs = [program(problem, text, id=f"{n}") for n, (problem, text, _) in enumerate(answers)]
    assert [one.right for one in execute(programs)] == [right for *_, right in answers]
    (broken,) = positive_control([program(mbpp, "def double(x):\n    return x"), *references([humaneval, mbpp])])
    assert (broken.id, broken.status) == ("MBPP/11", "failed") and broken.detail.startswith("NameError")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({key: value for key, value in MADE.items() if key != "test"}, "another format: entry 1: KeyError: 'test'"),
        ({**MADE, "test": 3}, "another format: entry 1: AttributeError"),
    ],
)
def test_another_format_is_told(tmp_path, entry, text):
    with pytest.raises(StepwellError, match=text):
        load_humaneval(written(tmp_path / "made.jsonl", entry))


def test_what_cannot_be_used_is_told(tmp_path):
    with pytest.raises(StepwellError, match="two problems have the id 'Made/0'"):
        load_humaneval(written(tmp_path / "made.jsonl", MADE, MADE))
    with pytest.raises(StepwellError, match="no problem of the split 'train' is in the file"):
        load_mbpp(written(tmp_path / "mbpp.jsonl", MADE_MBPP), split="train")
    with pytest.raises(StepwellError, match="entry 1: ValueError: the tests call no function of the reference"):
        load_mbpp(written(tmp_path / "mbpp.jsonl", {**MADE_MBPP, "code": "x = 1"}))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:20])
    with pytest.raises(StepwellError, match="cannot be read"):
        load_humaneval(tmp_path / "cut.jsonl.gz")
