"""Tiny models of every backbone's shape with a tokenizer of bytes, for the tests of the prompt contract."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from doubles import norms_in_float64
from fit_models import SHAPES
from stepwell.backbone import HFBackbone
from stepwell.latents.contract import Contract
from stepwell.latents.contract_specs import ContractParams
from stepwell.shapes import Precision
from stepwell.tasks.base import QA

CHAT = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INSTRUCTION = "Be brief."
CAFE = "in Zo\u00eb's caf\u00e9"
ITEMS = (
    QA(id="a", question="Who led?", answers=("Rollo", "King Rollo"), context="They were led by Rollo, a Viking."),
    QA(id="b", question="Where is the tower, then?", answers=(CAFE,), context=f"The tower is {CAFE}."),
    QA(id="c", question="Why?", answers=(), context="Nobody said why, and nobody has asked for it until today."),
    QA(id="d", question="How many are there, all told?", answers=("3", "three"), context="There are three."),
    QA(id="e", question="When?", answers=("in the year 1066",)),
)


def bytes_tokenizer(*, chat_template: str | None = CHAT, pad: str = "</s>", bos: str | None = "<s>") -> Any:
    """A tokenizer of transformers, one token a byte; its pad token is its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), len(names))}
    built: Any = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)} | alphabet, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=built, bos_token=bos, eos_token="</s>", pad_token=pad)
    found.add_tokens(names, special_tokens=True)
    found.chat_template = chat_template
    return found


@cache
def letters(name: str = "llama", precision: Precision = "fp64") -> HFBackbone:
    """A model of random weights, so large that attention and positions matter, that reads and writes bytes."""
    shape = replace(SHAPES[name], vocabulary=264, max_positions=400)
    backbone = HFBackbone.from_shape(shape, precision=precision, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.25, generator=generator)
    if precision == "fp64":
        norms_in_float64(backbone, backbone.width)
    backbone.tokenizer = bytes_tokenizer()
    return backbone


def contract_of(backbone: Any, **changes: Any) -> Contract:
    given = {"instruction": INSTRUCTION, "max_prompt_tokens": 300, "max_answer_tokens": 20, **changes}
    return Contract.of(backbone, ContractParams(**given))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
