"""Only losses by truth, only of training splits, none of an evaluation set; and the gate of what is trained on them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from grading_models import benchmark, items, result

from stepwell.errors import StepwellError
from stepwell.grading.mining import Failure, Mined, mine, read_failures, with_replay, write_failures
from stepwell.grading.records import Record
from stepwell.grading.regression import regression
from stepwell.grading.versus import Match, versus
from stepwell.sft.conversations import Conversation, read_conversations
from stepwell.sft.overlap import Overlap

NOTHING = Overlap.of({})


def mined(ours: list[bool], theirs: list[bool], evaluation: Overlap = NOTHING, split: str = "train") -> Mined:
    mine_, other = result(ours, split=split), result(theirs, split=split)
    return mine(versus(mine_, other), mine_, benchmark(len(ours), split=split), evaluation)


def test_failures_are_losses_only(tmp_path: Path):
    found = mined([True, True, False, False], [True, False, True, False])
    assert found.ties == 1 and found.contaminated == () and found.without == ()
    (one,) = found.failures
    assert (one.id, one.category, one.wrong, one.reference) == ("p002", "maths", "It is 3.", "#### 2")
    assert one.prompt == items(3)[2].question + "\n\nThink step by step. End with #### and the final number."
    assert one.why == "last: 3, not 2"
    write_failures(tmp_path / "f.jsonl", found.failures)
    assert read_failures(tmp_path / "f.jsonl") == [one]
    assert one.conversation().messages[1] == {"role": "assistant", "content": "#### 2"}


def test_what_a_judge_said_is_no_failure():
    ours = result([True, True])
    found = versus(ours, ours)
    judged = replace(found, matches=(Match(id="p000", outcome="loss", by="judge", why=""), found.matches[1]))
    assert mine(judged, ours, benchmark(2), NOTHING).failures == ()


@pytest.mark.parametrize("split", ["test", "validation"])
def test_items_of_a_benchmark_are_never_mined(split: str):
    with pytest.raises(StepwellError) as caught:
        mined([False], [True], split=split)
    assert caught.value.cause == f"failures on the split '{split}' of gsm8k would be trained on"
    assert caught.value.way_out == (
        "mine a training split: items of a test or validation split are for evaluation only"
    )


def test_evaluation_items_are_left_out_and_named():
    evaluation = Overlap.of({f"test-{i}": item.question for i, item in enumerate(items(4)) if i in (1, 3)})
    found = mined([False] * 4, [True] * 4, evaluation)
    assert found.contaminated == (("p001", "test-1"), ("p003", "test-3"))
    assert [one.id for one in found.failures] == ["p000", "p002"]
    assert mined([False] * 4, [True] * 4, Overlap.of({"x": "Something else."})).contaminated == ()


def test_a_result_of_other_items_is_not_mined():
    ours = result([False, False])
    with pytest.raises(StepwellError, match="is not one of the items of gsm8k"):
        mine(versus(ours, ours), ours, benchmark(3), NOTHING)


def test_a_broken_file_of_failures(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    write_failures(path, mined([False] * 2, [True] * 2).failures)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(StepwellError, match="line 2 is no failure"):
        read_failures(path)


def failures(n: int) -> list[Failure]:
    return [Failure(id=f"f{i}", category="maths", prompt="?", wrong="1", reference="2", why="") for i in range(n)]


def conversations(n: int, prefix: str = "c") -> list[Conversation]:
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    return [Conversation(id=f"{prefix}{i}", messages=turns) for i in range(n)]


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.5, 10), (0.2, 3), (0.9, 90)])
def test_replay(share: float, wanted: int):
    found = with_replay(failures(10), conversations(200), share=share)
    assert len(found) == 10 + wanted and [one.id for one in found[:10]] == [f"f{i}" for i in range(10)]
    assert found == with_replay(failures(10), conversations(200)[::-1], share=share)
    assert len({one.id for one in found}) == len(found)
    known = with_replay(failures(10), conversations(20, "f"), share=0.5)
    assert sorted(one.id for one in known[10:]) == sorted(f"f{i}" for i in range(10, 20))


def test_replay_that_cannot_be():
    with pytest.raises(StepwellError) as caught:
        with_replay(failures(10), conversations(5), share=0.5)
    assert caught.value.cause == "a replay share of 0.5 beside 10 failures takes 10 examples, of 5"
    with pytest.raises(StepwellError, match="a replay share of 1"):
        with_replay(failures(10), conversations(5), share=1.0)


def test_failures_read_as_training_data(tmp_path: Path):
    """What is written can be linted as what it becomes."""
    path = tmp_path / "c.jsonl"
    import json

    path.write_text("".join(json.dumps({"messages": f.conversation().messages}) + "\n" for f in failures(3)))
    assert [one.messages for one in read_conversations(path)] == [f.conversation().messages for f in failures(3)]


def drawn(n: int, before: float, lost: float, gained: float, seed: int = 0) -> tuple[list[bool], list[bool]]:
    draw = random.Random(seed)
    old = [draw.random() < before for _ in range(n)]
    new = [draw.random() >= lost if one else draw.random() < gained for one in old]
    return new, old


def test_a_model_that_lost_nothing_passes():
    new, old = drawn(600, 0.6, 0.01, 0.2)
    found = regression(result(new), result(old))
    assert found.verdict == "pass" and found.keep and found.needed is None
    assert found.right_before == sum(old) and found.loss.n == sum(old)
    assert found.reason.startswith(f"pass: {len(found.lost)} of {sum(old)} items that were right are no longer")


def test_a_model_that_forgot_is_rolled_back():
    new, old = drawn(600, 0.6, 0.3, 0.05)
    found = regression(result(new), result(old))
    assert found.verdict == "roll back" and not found.keep
    assert found.p_value < 0.001 and found.reason.endswith("; the new model is worse")
    assert all(old[int(name[1:])] and not new[int(name[1:])] for name in found.lost)


def test_too_few_items_are_inconclusive_and_rolled_back():
    new, old = drawn(20, 0.5, 0.1, 0.1, seed=3)
    found = regression(result(new), result(old))
    assert found.verdict == "inconclusive" and not found.keep
    assert found.needed is not None and found.needed > 20
    assert found.reason.startswith("inconclusive, so rolled back: ")
    assert found.reason.endswith(f"; about {found.needed} items would tell")


def test_limits_lose_and_the_sandbox_does_not():
    old = result([True] * 10 + [False] * 10)
    late = Record(id="p000", sample=0, text="", status="timeout")
    broken = Record(id="p001", sample=0, text="", status="sandbox-error")
    found = regression(replace(old, records=(late, broken, *old.records[2:])), old)
    assert found.lost == ("p000",) and found.left_out == ("p001",) and found.right_before == 9


def test_a_gate_without_anything_to_lose():
    with pytest.raises(StepwellError, match="none of 5 items was right before, so nothing could be lost"):
        regression(result([True] * 5), result([False] * 5))
    with pytest.raises(StepwellError, match="different protocols"):
        regression(result([True] * 5), result([True] * 5, max_tokens=9))
