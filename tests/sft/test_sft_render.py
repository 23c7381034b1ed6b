"""Rendering: supervised are the answers and their ends, nothing else; training asks as evaluation does."""

from __future__ import annotations

import random
import re

import pytest
from byte_chat import TEMPLATE, ByteChat

from stepwell.errors import StepwellError
from stepwell.sft.conversations import Conversation
from stepwell.sft.render import ChatFormat

END = 259


def talk(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(id="t", messages=tuple({"role": roles[i % 2], "content": t} for i, t in enumerate(texts)))


def supervised_runs(rendered) -> list[list[int]]:
    """The runs of supervised ids, found by reading the flags as text."""
    flags = "".join("x" if flag else "." for flag in rendered.supervised)
    return [list(rendered.ids[match.start() : match.end()]) for match in re.finditer("x+", flags)]


def random_talks(n: int, seed: int = 0) -> list[Conversation]:
    draw = random.Random(seed)
    alphabet = "abc \n.é<|x{}"

    def text() -> str:
        return "".join(draw.choices(alphabet, k=draw.randint(1, 12))) + "."

    return [talk(*(text() for _ in range(2 * draw.randint(1, 3)))) for _ in range(n)]


def test_supervised_are_the_answers_and_the_tokens_that_end_them():
    tokenizer = ByteChat()
    form = ChatFormat.of(tokenizer)
    for conversation in random_talks(50):
        rendered = form.render(conversation, 10_000)
        wanted = [[*answer.encode(), END] for answer in conversation.answers]
        assert supervised_runs(rendered) == wanted
        whole = tokenizer.encode(tokenizer.apply_chat_template(conversation.messages), add_special_tokens=False)
        assert [*rendered.ids, ord("\n")] == whole
        assert rendered.ids.count(256) == 1 and rendered.ids[0] == 256
        assert not rendered.truncated


def test_training_asks_as_evaluation_does():
    form = ChatFormat.of(ByteChat())
    for conversation in random_talks(20, seed=1):
        rendered = form.render(conversation, 10_000)
        prompt = form.prompt(conversation.messages[:-1])
        answer = [*conversation.answers[-1].encode(), END]
        assert list(rendered.ids) == prompt + answer


def test_the_limit_cuts_and_says_so():
    form = ChatFormat.of(ByteChat())
    whole = form.render(talk("ab", "cd"), 100)
    assert not form.render(talk("ab", "cd"), len(whole.ids)).truncated
    cut = form.render(talk("ab", "cd"), len(whole.ids) - 1)
    assert cut.truncated and cut.ids == whole.ids[:-1] and supervised_runs(cut) == [list(b"cd")]
    assert supervised_runs(form.render(talk("ab", "cd"), 3)) == []


def test_stops_are_what_ends_a_turn():
    assert ChatFormat.of(ByteChat()).stops == {END}
    other = ByteChat(TEMPLATE.replace("<|end|>", "<pad>"))
    assert ChatFormat.of(other).stops == {260, END}


def test_another_template_is_another_format():
    one, same = ChatFormat.of(ByteChat()), ChatFormat.of(ByteChat())
    assert one.fingerprint() == same.fingerprint()
    assert ChatFormat.of(ByteChat(TEMPLATE.replace("\n", ""))).fingerprint() != one.fingerprint()


class Merging(ByteChat):
    """As byte-pair encoders do: two line feeds are one token."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = super().encode(text, add_special_tokens=add_special_tokens)
        made: list[int] = []
        for number in ids:
            if number == 10 and made and made[-1] == 10:
                made[-1] = 1
            else:
                made.append(number)
        return made

    def decode(self, ids, *, skip_special_tokens: bool = True) -> str:
        flat = [part for number in ids for part in ((10, 10) if number == 1 else (number,))]
        return super().decode(flat, skip_special_tokens=skip_special_tokens)


def test_no_token_reaches_across_the_header_of_an_answer():
    header = TEMPLATE.replace("<|{{ m['role'] }}|>", "<|{{ m['role'] }}|>\n").replace(
        "<|assistant|>", "<|assistant|>\n"
    )
    form = ChatFormat.of(Merging(header))
    conversation = talk("a", "\nb", "c", "\n\nd")
    rendered = form.render(conversation, 100)
    assert supervised_runs(rendered) == [[10, ord("b"), END], [1, ord("d"), END]]
    prompt = form.prompt(conversation.messages[:3])
    assert list(rendered.ids[: len(prompt)]) == prompt


def test_no_template_is_refused():
    with pytest.raises(StepwellError, match=r"the tokenizer has no chat template\n  Way out: name a chat model"):
        ChatFormat.of(ByteChat(None))


def test_a_template_that_never_ends_a_turn_is_refused():
    with pytest.raises(StepwellError, match="writes no special token after an answer"):
        ChatFormat.of(ByteChat(TEMPLATE.replace("<|end|>", "")))


def test_a_template_that_rewrites_earlier_turns_is_refused():
    first = "{% if loop.last and m['role'] == 'assistant' %}think{% endif %}"
    form = ChatFormat.of(ByteChat(TEMPLATE.replace("{{ m['content'] }}", first + "{{ m['content'] }}")))
    with pytest.raises(StepwellError, match="t: the chat template writes earlier turns otherwise"):
        form.render(talk("a", "b", "c", "d"), 100)


def test_a_template_that_asks_otherwise_than_it_answers_is_refused():
    asking = TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|>think {% endif")
    with pytest.raises(StepwellError, match=r"asks for an answer with '.*think ', and does not write that before"):
        ChatFormat.of(ByteChat(asking))


def test_a_conversation_that_the_template_refuses_is_told():
    refusing = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TEMPLATE
    form = ChatFormat.of(ByteChat(refusing))
    form.render(talk("a", "b"), 100)
    with pytest.raises(StepwellError, match="t: the chat template refuses the conversation: too long"):
        form.render(talk("a", "b", "c", "d"), 100)


@pytest.mark.slow
def test_a_real_template(tmp_path):
    from stepwell.backbone import HFBackbone

    tokenizer = HFBackbone.load("smollm2-135m", device="cpu").tokenizer
    form = ChatFormat.of(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert form.stops == {end}
    conversation = talk("What is 2 + 2?", "4.\n", "And 3 + 3?", "\n\n6")
    rendered = form.render(conversation, 1000)
    texts = [tokenizer.decode(run) for run in supervised_runs(rendered)]
    assert texts == ["4.\n<|im_end|>", "\n\n6<|im_end|>"]
    whole = tokenizer.apply_chat_template(list(conversation.messages), tokenize=False)
    assert tokenizer.decode(rendered.ids) + "\n" == whole
    one = talk("What is 2 + 2?", "4.")
    by_transformers = tokenizer.apply_chat_template(list(one.messages))["input_ids"]
    assert [*form.render(one, 1000).ids, *tokenizer.encode("\n")] == by_transformers
