"""Generated code, executed where it can do no harm: `execute` and what it takes and gives."""

from __future__ import annotations

from stepwell.sandbox.execution import execute
from stepwell.sandbox.limits import Limits
from stepwell.sandbox.programs import Outcome, Program, Status

__all__ = ["Limits", "Outcome", "Program", "Status", "execute"]
