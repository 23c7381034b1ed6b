"""Specs of encoders and adapters: what a plan may say, and that saying it loads nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from stepwell.fingerprint import of_spec
from stepwell.latents.encoder_specs import (
    AdapterSpec,
    AnyEncoder,
    BytesSpec,
    DeepPrefixSpec,
    LMSpec,
    Mean,
    Queries,
    SentenceSpec,
    Tokens,
    Vector,
)

ENCODERS = TypeAdapter(AnyEncoder)


def test_kinds_are_told_apart_and_poolings_may_be_named():
    assert ENCODERS.validate_python({"kind": "bytes"}) == BytesSpec()
    assert ENCODERS.validate_python({"kind": "lm", "pooling": "mean", "vectors": 4}) == LMSpec(vectors=(4,))
    assert ENCODERS.validate_python({"kind": "lm", "pooling": "tokens"}).pooling == Tokens()
    assert ENCODERS.validate_python({"kind": "lm"}).pooling == Mean()
    queries = {"kind": "queries", "inner": 8, "heads": 2}
    assert ENCODERS.validate_python({"kind": "lm", "pooling": queries}).pooling == Queries(inner=8, heads=2)
    sentence = ENCODERS.validate_python({"kind": "sentence", "model": "a/b", "pooling": "vector"})
    assert sentence == SentenceSpec(model="a/b", pooling=Vector())


@pytest.mark.parametrize("spec", [BytesSpec(), LMSpec(vectors=(4, 16, 64)), SentenceSpec(model="no/such")])
def test_a_spec_survives_json_and_has_a_fingerprint(spec: BytesSpec):
    assert ENCODERS.validate_json(spec.model_dump_json()) == spec
    assert of_spec(spec) == of_spec(ENCODERS.validate_python(of_spec(spec)))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"kind": "words"}, "does not match any of the expected tags"),
        ({"kind": "bytes", "vectors": []}, "at least 1 item"),
        ({"kind": "bytes", "vectors": 0}, "greater than or equal to 1"),
        ({"kind": "bytes", "vectors": (16, 4)}, "give each number once, the smallest first"),
        ({"kind": "bytes", "vectors": (4, 4)}, "give each number once, the smallest first"),
        ({"kind": "bytes", "inner": 10, "heads": 4}, "an inner width of 10 cannot be shared by 4 heads"),
        ({"kind": "lm", "pooling": {"kind": "queries", "inner": 6}}, "an inner width of 6 cannot be shared by 4 heads"),
        ({"kind": "lm", "pooling": {"kind": "mean", "inner": 6}}, "Extra inputs are not permitted"),
        ({"kind": "lm", "pooling": "vector"}, "does not match any of the expected tags"),
        ({"kind": "sentence", "model": "a/b", "pooling": "tokens"}, "does not match any of the expected tags"),
        ({"kind": "bytes", "answer_length": 3}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_plan_may_not_say(said: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        ENCODERS.validate_python(said)


def test_specs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        AdapterSpec().inner = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert DeepPrefixSpec().inner == 512 and AdapterSpec().learned_scale


def test_specs_need_no_torch_and_encoders_no_transformers():
    code = (
        "import sys, stepwell.latents.encoder_specs\n"
        "assert 'torch' not in sys.modules\n"
        "import stepwell.latents.encoder, stepwell.latents.adapter\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
