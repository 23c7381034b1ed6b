"""One contract for all: what it writes, what it cuts, what it refuses, and that texts and vectors stand alike in it."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contract_models import CHAT, INSTRUCTION, ITEMS, bytes_tokenizer, contract_of, letters
from fit_models import SHAPES
from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract, Coverage, same_contract
from stepwell.latents.contract_specs import ContractParams
from stepwell.tasks.base import QA

EOS = 1
TEMPLATES = ("chat", "plain")


def content(item: QA, context: str | None = None) -> str:
    """The user's words, put together by hand."""
    context = item.context if context is None else context
    middle = f"Context: {context}\n\n" if context else ""
    return f"{INSTRUCTION}\n\n{middle}Question: {item.question}"


def by_hand(template: str, item: QA, context: str | None = None) -> list[int]:
    """The text prompt of the tokenizer's own template, or of one string, tokenised whole."""
    tokenizer = letters().tokenizer
    if template == "plain":
        return [0, *tokenizer.encode(f"{content(item, context)}\nAnswer: ", add_special_tokens=False)]
    message = {"role": "user", "content": content(item, context)}
    return list(tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False))


def with_tokenizer(tokenizer: Any, **attributes: Any) -> Any:
    """A model of which nothing but the tokenizer is needed."""
    return SimpleNamespace(tokenizer=tokenizer, max_positions=None, width=32, **attributes)


class Joined:
    """A tokenizer that has words with the blank before them in one token, and learns its vocabulary as it reads."""

    eos_token_id, bos_token_id, unk_token_id = 0, 1, None

    def __init__(self) -> None:
        self.texts = ["</s>", "<s>"]

    def __len__(self) -> int:
        return 1000

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        import re

        assert not add_special_tokens
        found = re.findall(r" ?\w+| ?[^\s\w]+|\s", text)
        self.texts += [word for word in dict.fromkeys(found) if word not in self.texts]
        return [self.texts.index(word) for word in found]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.texts[i] for i in ids if i > 1 or not skip_special_tokens)


# What is written.


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_the_text_is_the_templates_own(template: str, item: QA):
    contract = contract_of(letters(), template=template)
    assert list(contract.text(item)) == by_hand(template, item)
    assert contract.text(item) == contract.prompt(item) + contract.anchor == contract.cut(item).ids
    assert contract.bos == (0,) and contract.eos == EOS


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", SHAPES)
def test_vectors_stand_where_the_text_stands(name: str, template: str):
    # Faults 08 and 11: with the text's own embeddings as prefix, BOS, template and anchor are those of the text.
    backbone = letters(name)
    contract = contract_of(backbone, template=template)
    with torch.no_grad():
        for item in ITEMS:
            prompt = torch.tensor([contract.prompt(item)])
            given = contract.around(backbone.embed(prompt[:, len(contract.bos) :]))
            assert torch.equal(given, backbone.embed(torch.tensor([contract.text(item)])))
        several = contract.around(torch.ones(3, 5, 32))
    assert several.shape == (3, 1 + 5 + len(contract.anchor), 32)
    assert several.dtype == torch.float64
    assert bool((several[:, 1:6] == 1).all())


def test_a_prefix_hears_of_its_gradient():
    prefix = torch.randn(2, 3, 32, requires_grad=True)
    contract_of(letters()).around(prefix)[:, 1:4].sum().backward()
    assert prefix.grad is not None and bool((prefix.grad == 1).all())


def test_a_blank_before_the_answer_goes_where_the_tokenizer_has_it():
    contract = contract_of(with_tokenizer(Joined()), template="plain")
    read = contract.backbone.tokenizer.decode
    assert read(contract.anchor, skip_special_tokens=False) == "Answer:"
    assert read(contract.answer("Rollo himself"), skip_special_tokens=False) == " Rollo himself</s>"
    whole = contract.text(ITEMS[0]) + contract.answer("Rollo")[:-1]
    text = f"{content(ITEMS[0])}\nAnswer: Rollo"
    assert list(whole) == [1, *contract.backbone.tokenizer.encode(text, add_special_tokens=False)]
    assert contract.said(contract.answer("Rollo")[:-1], True) == ("Rollo", True)
    bytewise = contract_of(letters(), template="plain")
    assert letters().tokenizer.decode(list(bytewise.anchor)) == "Answer: "
    assert bytewise.answer("Rollo")[0] == letters().tokenizer.encode("R", add_special_tokens=False)[0]


def test_an_anchor_of_ones_own():
    contract = contract_of(letters(), anchor="<|assistant|>\nIt is ")
    assert contract.anchor[0] == 3 and letters().tokenizer.decode(list(contract.anchor[1:])) == "\nIt is "


def test_without_an_instruction():
    contract = contract_of(letters(), template="plain", instruction="")
    text = letters().tokenizer.decode(list(contract.text(ITEMS[0])[1:]))
    assert text == f"Context: {ITEMS[0].context}\n\nQuestion: Who led?\nAnswer: "
    assert letters().tokenizer.decode(list(contract.prompt(ITEMS[4])[1:])) == "Question: When?\n"


# What is cut: fault 07.


def keeps_question(ids: tuple[int, ...], item: QA) -> bool:
    wanted = tuple(letters().tokenizer.encode(f"Question: {item.question}", add_special_tokens=False))
    return any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_is_never_cut(template: str):
    contract, rng = contract_of(letters(), template=template), random.Random(3)
    for _ in range(60):
        item = QA(id="x", question="q" * rng.randint(1, 30), answers=("y",), context="c" * rng.randint(0, 250))
        whole = contract.prompt(item)
        limit = rng.randint(80, 300)
        cut = contract.prompt(item, limit)
        assert len(cut) == min(limit, len(whole)) or (len(cut) < limit and b"Context" not in bytes_of(cut))
        assert keeps_question(cut, item)
        if len(cut) == limit < len(whole):
            assert list(cut + contract.anchor) == by_hand(template, item, (item.context or "")[: limit - len(whole)])


def bytes_of(ids: tuple[int, ...]) -> bytes:
    return letters().tokenizer.decode(list(ids)).encode()


def test_the_check_finds_a_question_that_was_cut():
    item = ITEMS[0]
    assert not keeps_question(contract_of(letters()).prompt(item)[:70], item)


def test_a_question_that_does_not_fit_is_told():
    contract = contract_of(letters())
    least = len(by_hand("chat", ITEMS[0], "")) - len(contract.anchor)
    assert contract.prompt(ITEMS[0], least) + contract.anchor == tuple(by_hand("chat", ITEMS[0], ""))
    with pytest.raises(
        StepwellError,
        match=f"item 'a': template, instruction and question have {least} tokens, and {least - 1} are allowed\n"
        "  Way out: allow more tokens, .* a question is never cut",
    ):
        contract.prompt(ITEMS[0], least - 1)
    with pytest.raises(StepwellError, match="item 'x' has no question"):
        contract.prompt(QA(id="x", question=" ", answers=("y",)))
    small = contract_of(letters(), max_prompt_tokens=75)
    assert len(small.prompt(ITEMS[0], 10_000)) == 75 == len(small.text(ITEMS[0])) - len(small.anchor)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_controls_send_as_much_as_they_say(template: str, item: QA):
    contract = contract_of(letters(), template=template)
    context, question = item.context or "", item.question
    for most in (0, 4, 9, 16, 17, 18, 40, 64, 500):
        # The blank before either is a token of its own here.
        found, spent = contract.cut(item, tokens=most), len(question.encode()) + 1
        kept = context.encode()[: max(0, most - spent - 1)]
        assert keeps_question(found.ids, item)
        assert found.over == (spent > most)
        assert found.tokens == spent + (min(most - spent, len(context.encode()) + 1) if most > spent and context else 0)
        assert found.bytes == len(question.encode()) + len(kept.decode(errors="ignore").encode())
        same = contract.cut(item, bytes=most)
        kept_text = context.encode()[: max(0, most - len(question.encode()))].decode(errors="ignore")
        assert list(same.ids) == by_hand(template, item, kept_text)
        assert same.bytes == len(question.encode()) + len(kept_text.encode()) and same.over == (
            len(question.encode()) > most
        )
    whole = contract.cut(item)
    assert whole.bytes == len(context.encode()) + len(question.encode()) and not whole.over


def test_a_control_is_under_the_same_limit():
    contract = contract_of(letters(), max_prompt_tokens=100)
    item = QA(id="x", question="Why?", answers=("y",), context="c" * 300)
    assert contract.cut(item, tokens=250).ids == contract.cut(item, bytes=250).ids == contract.text(item)
    assert contract.cut(item, bytes=250).bytes < 100


def test_coverage_counts_what_the_limits_cost():
    contract = contract_of(letters(), max_prompt_tokens=100, max_answer_tokens=8)
    made = {
        "fits": ("Rollo", "It was Rollo."),
        "answer cut": ("Rollo the Viking", "Rollo the Viking it was."),
        "context cut": ("Rollo", f"Rollo {'x' * 100}"),
        "answer lost": ("Rollo", f"{'x' * 100} Rollo"),
    }
    items = [QA(id=name, question="Who?", answers=(gold,), context=text) for name, (gold, text) in made.items()]
    items.append(QA(id="none", question="Who?", answers=(), context="x" * 200))
    assert contract.coverage(items) == Coverage(n=5, contexts_cut=3, answers_lost=1, answers_cut=1)
    assert contract.coverage([]) == Coverage(n=0, contexts_cut=0, answers_lost=0, answers_cut=0)


# What is answered: fault 04.


def test_an_answer_ends_with_eos_unless_it_is_too_long():
    contract = contract_of(letters(), max_answer_tokens=6)
    word = letters().tokenizer.encode("Rollo", add_special_tokens=False)
    assert letters().tokenizer.pad_token_id == EOS
    assert list(contract.answer("Rollo")) == [*word, EOS] == list(contract.answer(" Rollo\n"))
    assert len(contract.answer("Rollo the Viking")) == 6 and EOS not in contract.answer("Rollo the Viking")
    assert contract.answer("") == (EOS,)


def test_targets_and_first_tokens():
    contract = contract_of(letters(), no_answer="none")
    first = [letters().tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "RK3tn"]
    assert contract.target(ITEMS[0]) == contract.answer("Rollo")
    assert contract.target(ITEMS[2]) == contract.answer("none")
    assert [contract.first_tokens(item) for item in (ITEMS[0], ITEMS[3], ITEMS[2])] == [
        frozenset(first[:2]), frozenset(first[2:4]), frozenset(first[4:]),
    ]  # fmt: skip
    assert contract_of(letters()).target(ITEMS[2]) == (EOS,)
    with pytest.raises(StepwellError, match="item 'x' has a blank answer\n  Way out: leave it out"):
        contract.target(QA(id="x", question="Who?", answers=("Rollo", " ")))


@pytest.mark.parametrize("where", ["question", "context", "answer"])
def test_a_special_token_is_no_word(where: str):
    contract = contract_of(letters())
    item = QA(id="x", question="Who?", answers=("Rollo",), context="Rollo.")
    with pytest.raises(StepwellError, match=r"the text .*</s>.* holds '</s>', which is no word to the model"):
        if where == "answer":
            contract.answer("Rollo</s> himself")
        else:
            contract.text(QA(**{**{k: getattr(item, k) for k in item.__slots__}, where: "Rollo</s>?"}))


def test_what_is_said():
    plain, chat = contract_of(letters(), template="plain"), contract_of(letters(), no_answer="No answer.")
    ids = letters().tokenizer.encode
    assert plain.said(ids(" \nRollo. \nQuestion: Who?"), False) == ("Rollo.", True)
    assert plain.said(ids("Rollo and"), False) == ("Rollo and", False)
    assert chat.said(ids("Rollo\nand"), False) == ("Rollo\nand", False)
    assert chat.said(ids("no answer"), True) == ("", True)
    assert plain.said((), True) == ("", True)


def test_decoding_stops_where_the_model_may_end():
    tokenizer = bytes_tokenizer()
    ends = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[1, 77]))
    assert contract_of(with_tokenizer(tokenizer, model=ends)).stops == {1, 77}
    other = CHAT.replace("{{ m['content'] }}</s>", "{{ m['content'] }}<|user|>")
    turned = contract_of(with_tokenizer(bytes_tokenizer(chat_template=other)))
    assert (turned.eos, turned.stops) == (2, {1, 2})
    # An end that is a text is no token: the tokenizer's own stands in.
    words = CHAT.replace("{{ m['content'] }}</s>", "{{ m['content'] }} over")
    assert contract_of(with_tokenizer(bytes_tokenizer(chat_template=words))).eos == EOS


# What is compared: fault 11.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"template": "plain"}, "anchor "),
        ({"template": "plain"}, "template \\(\"chat\" against \"plain\"\\)"),
        ({"instruction": "Be quick."}, "instruction \\(\"Be brief.\" against \"Be quick.\"\\)"),
        ({"anchor": "Answer: "}, "anchor \\("),
        ({"no_answer": "none"}, "no_answer \\(\"\" against \"none\"\\)"),
        ({"max_prompt_tokens": 299}, "max_prompt_tokens \\(300 against 299\\)"),
        ({"max_answer_tokens": 19}, "max_answer_tokens \\(20 against 19\\)"),
    ],
)  # fmt: skip
def test_another_contract_is_refused_by_its_parts(changes: dict[str, Any], named: str):
    ours, other = contract_of(letters()), contract_of(letters(), **changes)
    assert ours.fingerprint() != other.fingerprint()
    with pytest.raises(StepwellError, match=f"^the prompt contracts differ in .*{named}"):
        same_contract(ours, other)
    with pytest.raises(StepwellError, match="under one contract: same model, template, anchor and limits"):
        same_contract(json.loads(json.dumps(ours.parts())), other)


def test_a_part_that_is_missing_from_a_record_is_named():
    parts = contract_of(letters()).parts()
    with pytest.raises(StepwellError, match=r"differ in tokenizer \(null against \{"):
        same_contract({name: value for name, value in parts.items() if name != "tokenizer"}, parts)


def test_another_tokenizer_and_another_template_are_refused():
    ours = contract_of(letters())
    silent = with_tokenizer(bytes_tokenizer(chat_template=CHAT.removeprefix("<s>"), bos=None))
    with pytest.raises(StepwellError, match="bos_ids \\(\\[0\\] against \\[\\]\\), example_ids"):
        same_contract(ours, contract_of(silent))
    assert contract_of(silent).bos == () and contract_of(silent, template="plain").bos == ()
    longer = with_tokenizer(bytes_tokenizer(chat_template=CHAT.replace("<s>", "<s>Today: 1 May.\n")))
    with pytest.raises(StepwellError, match=r"differ in example_ids .*, head_ids"):
        same_contract(ours, contract_of(longer))
    other = bytes_tokenizer()
    other.add_tokens(["new"])
    with pytest.raises(StepwellError, match="differ in tokenizer"):
        same_contract(ours, contract_of(with_tokenizer(other)))


def test_the_same_contract_is_no_alarm():
    ours = contract_of(letters("gpt2"))
    same_contract(ours, contract_of(with_tokenizer(bytes_tokenizer())))
    same_contract(ours, json.loads(json.dumps(ours.parts())))
    assert ours.fingerprint() == contract_of(letters("qwen2")).fingerprint()


def test_today_is_no_part_of_a_contract():
    dated = CHAT.replace("<s>", "<s>{{ date_string or 'today' }}{{ enable_thinking }}\n")
    contract = contract_of(with_tokenizer(bytes_tokenizer(chat_template=dated)))
    assert contract.shown().startswith("text:   <s>26 Jul 2024False\\n<|user|>\\nBe brief.")


def test_it_is_shown():
    ours = contract_of(letters())
    assert ours.shown().splitlines() == [
        "text:   <s><|user|>\\nBe brief.\\n\\nContext: {context}\\n\\nQuestion: {question}</s>\\n | <|assistant|>\\n | "
        "{answer}</s>",
        "latent: <s> | {M vectors} | <|assistant|>\\n | {answer}</s>",
        "at most 300 tokens of prompt, 20 of answer; the context is cut, the question never; fingerprint "
        + ours.fingerprint()[:12],
    ]


# What cannot be had.


def test_a_header_that_is_the_end_of_the_users_turn_is_the_anchor():
    inst = "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"  # noqa: E501
    contract = contract_of(with_tokenizer(bytes_tokenizer(chat_template=inst)))
    assert letters().tokenizer.decode(list(contract.anchor)) == " [/INST]"
    assert letters().tokenizer.decode(list(contract.text(ITEMS[4]))).endswith("Question: When? [/INST]")
    assert contract.tail == () and contract.eos == EOS


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the tokenizer has no chat template\n  Way out: set `template: plain`"),
        ("{{ raise_exception('no system message') }}", "the chat template cannot be used: no system message"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "does not write a turn's words once"),
        ("{{ messages[0]['content'] | upper }}{{ messages | length }}", "does not write a turn's words once"),
        ("{{ messages[-1]['content'] }}", "there is nothing between prompt and answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(template: str | None, said: str):
    with pytest.raises(StepwellError, match=said):
        contract_of(with_tokenizer(bytes_tokenizer(chat_template=template)))


def test_a_model_that_cannot_be_asked_is_told():
    with pytest.raises(StepwellError, match="the model has no tokenizer"):
        contract_of(with_tokenizer(None))
    endless = bytes_tokenizer(chat_template=None)
    endless.eos_token = None
    with pytest.raises(StepwellError, match="the tokenizer has no end token"):
        contract_of(with_tokenizer(endless), template="plain")
    with pytest.raises(StepwellError, match=r"there is nothing between prompt and answer\n  Way out: give an anchor"):
        contract_of(letters(), anchor="")
    with pytest.raises(
        StepwellError,
        match="a max_prompt_tokens of 380, the anchor and 20 tokens of answer need 401 positions, and the model knows",
    ):
        contract_of(letters(), max_prompt_tokens=380, anchor="ab")
    contract_of(letters(), max_prompt_tokens=379, anchor="ab")


def test_a_prefix_that_does_not_fit_is_told():
    contract = contract_of(letters(), anchor="ab")
    with pytest.raises(StepwellError, match=r"the prefix has the shape \(2, 3, 31\)\n  Way out: .*D = 32"):
        contract.around(torch.zeros(2, 3, 31))
    with pytest.raises(
        StepwellError, match="a prefix of 379 vectors, the anchor and 20 tokens of answer need 401 posi"
    ):
        contract.around(torch.zeros(1, 379, 32))
    assert contract.around(torch.zeros(1, 378, 32)).shape == (1, 381, 32)


@pytest.mark.slow
def test_a_real_tokenizer_reads_the_joined_parts_as_the_whole(shared_data: Any):
    from stepwell.backbone import HFBackbone
    from stepwell.tasks.squad import load_squad

    backbone = HFBackbone.load("smollm2-135m", device="cpu")
    tokenizer = backbone.tokenizer
    items = load_squad(shared_data("squad/dev-a.json"))[::100]
    for template in TEMPLATES:
        contract = Contract.of(
            backbone, ContractParams(template=template, instruction=INSTRUCTION, max_prompt_tokens=2000)
        )
        for item in items:
            if template == "chat":
                message = {"role": "user", "content": content(item)}
                wanted = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
            else:
                wanted = f"<|im_start|>{content(item)}\nAnswer:"
            assert list(contract.text(item)) == tokenizer.encode(wanted, add_special_tokens=False)
            answered = contract.text(item) + contract.target(item)
            spoken = f"{wanted}{contract.lead}{item.answers[0]}<|im_end|>"
            assert list(answered) == tokenizer.encode(spoken, add_special_tokens=False)
