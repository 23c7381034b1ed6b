"""What every test may ask for: the shared real data, with one clear reason where it is not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sees whose shapes do not fit: our own words, for the checks of shapes are on in tests alone."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def shared_data():
    """A function from a name under shared/data to its path; skips for users, fails in CI, where the file is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            reason = f"real data not at hand: {name} is looked for in ../shared/data beside the checkout"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        return path

    return find
