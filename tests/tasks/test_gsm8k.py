"""GSM8K as it is published, and files that are none."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks import gsm8k
from stepwell.tasks.gsm8k import load_gsm8k, score


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_official_file(shared_data):
    items = load_gsm8k(shared_data("gsm8k/train.jsonl"))
    assert len(items) == 7473 and items[0].id == "train-00000"
    assert items[0].answers == ("72",) and items[0].solution.endswith("#### 72")
    assert "<<" in items[0].solution and "<<" not in items[0].plain_solution
    assert items[0].plain_solution.startswith("Natalia sold 48/2 = 24 clips in May.")
    assert all(score(item, item.solution).exact and score(item, item.plain_solution).exact for item in items[::20])
    assert not any("," in item.answers[0] for item in items)
    right = sum(score(item, other.solution).exact for item, other in pairwise(items[:501]))
    assert right < 25


def test_splits_of_the_hub_share_no_ids(monkeypatch: pytest.MonkeyPatch):
    rows = [{"question": "1 + 1?", "answer": "#### 2"}]
    monkeypatch.setattr(gsm8k, "entries", lambda source, split, expected: rows)
    ids = [load_gsm8k("openai/gsm8k:main", split=split)[0].id for split in ("train", "test")]
    assert ids == ["train-gsm8k-main-00000", "test-gsm8k-main-00000"]


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (
            {"question": "?", "answer": "It is 72."},
            "1 of 2 solutions do not end in #### and a number, 'f-00001' for one",
        ),
        ({"question": "?", "answer": "####"}, "1 of 2 solutions do not end in #### and a number, 'f-00001' for one"),
        ({"question": "?", "answers": ["72"]}, "another format: entry 2 has the fields question, answers"),
        ({"question": " ", "answer": "#### 72"}, "another format: entry 2 has the fields question, answer"),
    ],
)
def test_another_format(tmp_path: Path, row: object, cause: str):
    path = write(tmp_path / "f.jsonl", {"question": "?", "answer": "#### 1"}, row)
    with pytest.raises(StepwellError) as caught:
        load_gsm8k(path)
    assert caught.value.cause == cause and caught.value.path == path
