"""Conversations: every form is read, and every fault of a line is told with the line and the key."""

from __future__ import annotations

import json

import pytest

from stepwell.errors import StepwellError
from stepwell.sft.conversations import Conversation, read_conversations

CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}


def written(folder, *lines: object):
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def asked(question: str, answer: str):
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def test_every_form_is_read(tmp_path):
    path = written(
        tmp_path,
        CHAT | {"id": 7, "category": "maths"},
        {"instruction": "Add.", "input": "1 and 1", "response": "2"},
        {"instruction": "Say yes.", "input": "", "output": "yes"},
        "",
        {"prompt": "p\u2028q", "completion": " c "},
        {"system": "Be short.", "instruction": "Hi", "output": "Hello"},
    )
    assert read_conversations(path) == [
        Conversation(id="7", messages=asked("1+1?", "2"), category="maths"),
        Conversation(id="data-000002", messages=asked("Add.\n\n1 and 1", "2")),
        Conversation(id="data-000003", messages=asked("Say yes.", "yes")),
        Conversation(id="data-000005", messages=asked("p\u2028q", " c ")),
        Conversation(id="data-000006", messages=({"role": "system", "content": "Be short."}, *asked("Hi", "Hello"))),
    ]


def test_what_is_asked_and_what_is_answered():
    made = Conversation(id="a", messages=(*asked("a", "b"), *asked("c", "d")))
    assert (made.asked, made.answers) == ("a\nc", ("b", "d"))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "line 2: not JSON: column 2"),
        ([1], "line 2: a list, not an object"),
        ({"text": "a"}, "line 2: in no known form: it has `text`"),
        ({"instruction": "a"}, "line 2: `response` or `output` is missing"),
        ({"instruction": "a", "response": "b", "output": "c"}, "`response` or `output`: both are given"),
        ({"instruction": 3, "output": "c"}, "line 2: `instruction` is a int, not a text"),
        ({"prompt": "a", "completion": " \n"}, "line 2: `completion` is empty"),
        ({"messages": []}, "`messages` is no list with something in it"),
        ({"messages": ["a"]}, "`messages[0]` is a str, not an object"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "`messages[0].role` is 'tool', not one of system"),
        ({"messages": [{"role": "user"}]}, "`messages[0].content` is missing"),
        ({"messages": [{"role": "user", "content": "a"}]}, "`messages` ends with the user: there is no answer"),
        (CHAT | {"category": 3}, "`category` is a int, not a text"),
        (CHAT | {"id": "data-000001"}, "line 2: the id 'data-000001' is given twice"),
    ],
)
def test_a_fault_is_told_with_line_and_key(tmp_path, line, cause):
    with pytest.raises(StepwellError) as error:
        read_conversations(written(tmp_path, CHAT, line))
    assert cause in error.value.cause
    assert str(tmp_path / "data.jsonl") in str(error.value)
