from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import pytest

from stepwell.errors import StepwellError
from stepwell.fingerprint import canonical, fingerprint, of_file, of_folder, of_spec
from stepwell.spec import DataFile, ModelName, Spec


class Colour(StrEnum):
    RED = "red"


class Params(Spec):
    lr: float = 0.1
    file: DataFile | None = None
    more: dict[str, DataFile] = {}  # noqa: RUF012


def random_value(source: random.Random, depth: int = 0) -> Any:
    choice = source.randrange(7 if depth < 3 else 5)
    if choice == 5:
        return [random_value(source, depth + 1) for _ in range(source.randrange(4))]
    if choice == 6:
        return {f"k{source.randrange(9)}é": random_value(source, depth + 1) for _ in range(source.randrange(4))}
    return [None, source.random() < 0.5, source.randrange(-(10**12), 10**12), source.gauss(0, 1e6), f"ü{choice}\n"][
        choice
    ]


def shuffled(value: Any, source: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        source.shuffle(keys)
        return {key: shuffled(value[key], source) for key in keys}
    return [shuffled(item, source) for item in value] if isinstance(value, list) else value


def test_it_is_the_sha256_of_sorted_compact_json() -> None:
    value = {"b": [1, 2.5, None, True], "a": "ü"}
    text = '{"a":"ü","b":[1,2.5,null,true]}'
    assert canonical(value) == text
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_keys_does_not_matter_and_everything_else_does() -> None:
    source = random.Random(0)
    seen: dict[str, str] = {}
    for _ in range(300):
        value = random_value(source)
        text = canonical(value)
        assert fingerprint(shuffled(value, source)) == fingerprint(value)
        assert json.loads(text) == value
        assert seen.setdefault(fingerprint(value), text) == text
    assert len({fingerprint(value) for value in (1, 1.0, True, "1", [1], None, {"1": 1})}) == 7
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(MappingProxyType({"a": 1})) == fingerprint({"a": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "value cannot be fingerprinted: nan is not a number that JSON knows"),
        ({"a": [1, float("inf")]}, "value.a[1] cannot be fingerprinted: inf"),
        (Path("/x"), "PosixPath has no canonical form"),
        ({1, 2}, "builtins.set has no canonical form"),
        (b"x", "builtins.bytes has no canonical form"),
        (object(), "builtins.object has no canonical form"),
        (numpy.float64(1.0), "numpy.float64 has no canonical form"),
        (Colour.RED, "Colour has no canonical form"),
        ({"a": {1: 2}}, "value.a cannot be fingerprinted: key 1 is a int, not a text"),
        (len, "has no canonical form"),
    ],
)
def test_what_has_no_canonical_form_raises_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(StepwellError) as caught:
        fingerprint(value)
    assert message in str(caught.value)
    assert "name a file in a field of type DataFile" in str(caught.value)


def test_files_are_known_by_content(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(StepwellError, match="gone: cannot be read: No such file"):
        of_file(tmp_path / "gone")
    with pytest.raises(StepwellError, match="cannot be read: Is a directory"):
        of_file(tmp_path)


def test_moving_a_file_changes_nothing_and_changing_it_does(tmp_path: Path) -> None:
    def identity(name: str) -> Mapping[str, Any]:
        return of_spec(Params(file=tmp_path / name, more={"x": tmp_path / name}))

    (tmp_path / "a").write_text("[]")
    (tmp_path / "b").write_text("[]")
    (tmp_path / "c").write_text("[ ]")
    assert fingerprint(identity("a")) == fingerprint(identity("b")) != fingerprint(identity("c"))
    assert identity("a")["more"] == {"x": {"sha256": hashlib.sha256(b"[]").hexdigest()}}
    assert of_spec(Params()) == {"lr": 0.1, "file": None, "more": {}}


class WithModel(Spec):
    name: ModelName | None = None
    inner: Params = Params()


def test_a_model_folder_is_known_by_its_content(tmp_path: Path) -> None:
    """Changed weights in the same folder are another model; a hub id is known by its name."""
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights.safetensors").write_bytes(b"1234")
    named = WithModel(name=str(folder))
    first = of_spec(named)
    assert first["name"] == {"sha256": of_folder(folder)} and of_spec(named) == first
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert of_spec(WithModel(name=str(moved))) == first
    (moved / "deep" / "weights.safetensors").write_bytes(b"1235")
    changed = of_spec(WithModel(name=str(moved)))
    assert changed != first
    (moved / "deep" / "weights.safetensors").rename(moved / "weights.safetensors")
    assert of_spec(WithModel(name=str(moved))) not in (first, changed)
    assert of_spec(WithModel(name="org/model"))["name"] == "org/model"
    assert of_spec(WithModel())["name"] is None
