"""The shipped studies: importing this registers their stage kinds, and nothing heavy."""

from __future__ import annotations

from stepwell.studies.imprint import kinds as _imprint
from stepwell.studies.qa import params as _qa
from stepwell.studies.squeeze import params as _squeeze
from stepwell.studies.thoughts import analysis_params as _analyses
from stepwell.studies.thoughts import params as _thoughts
from stepwell.studies.tune import kinds as _tune
from stepwell.studies.wire import kinds as _wire

__all__ = ["KINDS"]

KINDS = (*_thoughts.KINDS, *_analyses.KINDS, *_imprint.KINDS, *_qa.KINDS, *_squeeze.KINDS, *_tune.KINDS, *_wire.KINDS)
"""The kinds of stage that ship with Stepwell."""
