"""`stepwell audit adapter`: what an adapter is, and what speaks against merging it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.merging.adapter import Adapter, Lineage
from stepwell.merging.base import BaseIdentity
from stepwell.merging.faults import examine, other_base
from stepwell.merging.files import Weights
from stepwell.merging.layout import Layout
from stepwell.merging.matching import Fault
from stepwell.models import locate


@dataclass(frozen=True, kw_only=True)
class AdapterAudit:
    """What was found.

    Attributes:
        folder: of the adapter.
        lineage: what it says of its base.
        pairs: low-rank updates in it.
        base: identity of the base it was looked at with; None where none was given.
        faults: kinds of finding.
    """

    folder: Path
    lineage: Lineage
    pairs: int
    base: BaseIdentity | None
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "adapter": str(self.folder),
            "lineage": self.lineage.to_json(),
            "base_sha256": self.base and self.base.sha256,
            "pairs": self.pairs,
            "ok": self.ok,
            "findings": [fault.to_json() for fault in self.faults],
        }


def audit(folder: Path, base: str | Path | None = None) -> AdapterAudit:
    """Look at an adapter, and at its fit to a base; the base's weights are read once, to be hashed.

    Args:
        folder: of the adapter.
        base: folder, pulled name or hub id; None = the adapter alone.

    Raises:
        StepwellError: what cannot be read at all: missing or broken files, pickles, other kinds of adapter.
    """
    adapter = Adapter.read(folder)
    with ExitStack() as stack:
        tensors = stack.enter_context(adapter.open())
        if base is None:
            faults = examine(adapter, tensors).faults
            return AdapterAudit(folder=folder, lineage=adapter.lineage, pairs=len(adapter.pairs), base=None,
                                faults=faults)  # fmt: skip
        place = locate(base)
        weights = stack.enter_context(Weights.of_model(place))
        found = examine(adapter, tensors, base=(str(base), place, weights, Layout.of(place, weights)))
    identity = BaseIdentity.of(place)
    return AdapterAudit(folder=folder, lineage=adapter.lineage, pairs=len(adapter.pairs), base=identity,
                        faults=(*found.faults, *other_base(adapter, identity)))  # fmt: skip
