"""Prints the lock file: every package that the project and its development tools need, pinned as it is installed now.

It walks from the requirements in pyproject.toml through the metadata of the environment that runs it, so what is
installed there for another reason stays out. Run it through `make lock`.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HEADER = """\
# Every package that Stepwell and its development tools need, pinned. Installs on Python 3.11 with plain pip:
#   python3.11 -m pip install -r requirements/dev.lock
# To regenerate: install the wished-for versions into .venv, check them with `make test`, then run `make lock`.
"""


def roots(project: Path) -> list[Requirement]:
    """The requirements that pyproject.toml names: of the package, of building it, and of developing it."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))
    named = [*table["project"]["dependencies"], *table["build-system"]["requires"], *table["dependency-groups"]["dev"]]
    return [Requirement(line) for line in named]


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Canonical name -> installed version, of all requirements and of what they need in turn."""
    pinned: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            sys.exit(f"requirements/lock.py: {requirement} is needed and not installed in {sys.prefix}")
        version = Version(found.version)
        if version not in requirement.specifier:
            sys.exit(f"requirements/lock.py: {requirement} is needed, {found.version} is installed in {sys.prefix}")
        # A local part such as +cpu says which build is installed; which one a user gets is for their index to say.
        pinned[name] = version.public
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in found.requires or ():
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    waiting.append(child)
    return pinned


if __name__ == "__main__":
    pins = closure(roots(Path(__file__).resolve().parents[1] / "pyproject.toml"))
    print(HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))
