"""The kinds of stage of the study `imprint`. Nothing here needs torch."""

from __future__ import annotations

from stepwell import kinds
from stepwell.studies.imprint.params import (
    BaselineParams,
    CheckParams,
    ControlParams,
    DataParams,
    FitParams,
    MeasureParams,
    ModelParams,
    SmallestParams,
)
from stepwell.tasks.paraphrases import ParaphraseSpec

_HERE = "stepwell.studies.imprint"

KINDS = (
    kinds.register(
        kinds.Kind(
            name="imprint.data",
            params=DataParams,
            run=f"{_HERE}.pairs:make",
            yields={
                "dataset": frozenset({"set", "n", "sha256", "source", "family", "task", "left_out"}),
                "example": frozenset({"id", "question", "answer", "answers", "context"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.paraphrase",
            params=ParaphraseSpec,
            run=f"{_HERE}.rewording:reword",
            yields={
                "paraphrase": frozenset({"id", "mode", "texts"}),
                "lack": frozenset({"id", "mode", "wanted", "found", "why"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.model",
            params=ModelParams,
            run=f"{_HERE}.models:check",
            yields={
                "model": frozenset({"name", "fallback", "why", "width", "parameters", "vocabulary", "max_positions"})
                | {"precision", "modes"},
                "check": frozenset({"name", "passed", "detail"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.baselines",
            params=BaselineParams,
            run=f"{_HERE}.baselines:baselines",
            yields={
                "baseline": frozenset({"id", "mode", "tokens", "random", "random_low", "random_high", "full_context"})
                | {"random_token", "text_prompt", "nothing", "bar", "why"}
            },
            estimate=f"{_HERE}.cost:of_baselines",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.fit",
            params=FitParams,
            run=f"{_HERE}.fits:fit_pairs",
            yields={
                "restart": frozenset({"id", "mode", "restart", "seed", "end", "detail", "steps", "nats", "exact"})
                | {"held", "tokens", "lead", "converged", "zero", "health", "health_why"},
                "curve": frozenset({"id", "mode", "restart", "steps", "nats"}),
                "target": frozenset({"id", "mode", "restart", "converged", "exact", "nats", "tokens", "held", "steps"})
                | {"own_nats", "ratio_to_random", "ratio_to_baseline", "zero", "health", "end", "detail"},
                "pair": frozenset({"id", "restart", "converged", "exact", "steps", "end", "detail"})
                | {"gradient_cosine", "opposed", "conflict"},
                "leak": frozenset({"n", "zero", "share", "low", "high", "alarm", "fine"}),
                "conflict": frozenset({"n", "mean", "low", "high", "undefined", "alarm", "fine"}),
                "alert": frozenset({"monitor", "step", "message", "stopped"}),
            },
            estimate=f"{_HERE}.cost:of_fit",
            parallel="chunks",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.check",
            params=CheckParams,
            run=f"{_HERE}.spotcheck:check",
            yields={
                "spot": frozenset({"id", "mode", "target", "written", "stopped", "exact_decode", "verdict", "how"})
                | {"similarity", "why", "converged", "passed"}
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.controls",
            params=ControlParams,
            run=f"{_HERE}.controls:controls",
            yields={
                "control": frozenset({"id", "mode", "control", "donor", "nats", "exact", "held"}),
                "capability": frozenset({"id", "pair", "condition", "nats", "written", "correct"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.measure",
            params=MeasureParams,
            run=f"{_HERE}.measures:measures",
            yields={
                "gain": frozenset({"id", "mode", "bits", "bits_per_slot", "bits_per_token", "tokens", "why"}),
                "storage": frozenset({"id", "text_bytes", "ids_bytes", "packed_bytes", "float32_bytes"})
                | {"bfloat16_bytes", "int8_bytes", "int4_bytes"},
                "noise": frozenset({"id", "scale", "nats", "change", "exact"}),
                "quantised": frozenset({"id", "bits", "nats", "change", "exact", "bytes"}),
                "geometry": frozenset({"id", "slot", "nearest", "distance", "cosine", "norm"}),
                "similarity": frozenset({"id", "other", "cosine"}),
                "line": frozenset({"id", "first", "second", "fractions", "nats", "barrier", "why"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="imprint.smallest",
            params=SmallestParams,
            run=f"{_HERE}.measures:smallest",
            yields={"smallest": frozenset({"id", "slots", "tried", "why"})},
        )
    ),
)
"""Stages of the study, in the order in which a plan has them."""
