"""Gates: from records to go, no-go or inconclusive, with interval, reason, and the n that would decide."""

from __future__ import annotations

from stepwell.gate.decision import decide, spared
from stepwell.gate.verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "decide", "spared"]
