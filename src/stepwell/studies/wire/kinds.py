"""The study's kinds of stage, and the fields of their records. Nothing here needs torch."""

from __future__ import annotations

from stepwell import kinds
from stepwell.studies.qa.params import ITEM
from stepwell.studies.wire.params import (
    OF_LATENTS,
    OF_TEXT,
    PARTS,
    REPEATED,
    AnswerParams,
    EncoderParams,
    StageAParams,
    StageBParams,
)

_HERE = "stepwell.studies.wire"
TERMS = frozenset(
    f"{part}_{term}" for part in ("loss", "weighted", "weight") for term in (*OF_LATENTS, OF_TEXT)
)  # fmt: skip
"""What a step says of each term; null where the stage does not have it."""
NORMS = frozenset(f"grad_norm_{part}" for part in PARTS)
FIRST = frozenset({"n", "first_acc", "first_acc_low", "first_acc_high", "first_acc_top5", "first_acc_top5_low"})
FIRST |= {"first_acc_top5_high", "majority_acc", "majority_low", "majority_high"}
"""First tokens on the held-out items; null between looks."""
ANY_STEP = NORMS | {"step", "epoch", "mode", "lr", "loss", "grad_norm", "scale", "vectors", "items", "micro_batches"}
ANY_STEP |= {"skipped", "drawn"}
"""What a step of every training says: `vectors` is the M of its looks, the largest, and `drawn` that of the step."""
STEP = ANY_STEP | TERMS | FIRST | {"keep", "gold", "answer_tokens"}
REPEAT_STEP = ANY_STEP | {f"{part}_{REPEATED}" for part in ("loss", "weighted", "weight")} | {"text_tokens"}
_ANY_OUTCOME = frozenset({"n", "max_grad_norm", "steps", "skipped"})
_PROVED = {
    "parameters": frozenset({"trainable", "total", "base", "contract"}),
    "check": frozenset({"name", "passed", "detail"}),
}
_TRAINING = _PROVED | {
    "step": STEP,
    "validation": frozenset({"step", "n", "f1", "em", "best_f1", "distinct", "repetition", "answer_tokens"}),
    "sample": frozenset({"step", "id", "question", "answers", "prediction", "f1"}),
    "first_tokens": frozenset({"step", "n", "tokens", "counts", "gold_tokens", "gold_counts", "majority"}),
    "alert": frozenset({"monitor", "step", "message", "stopped"}),
    "outcome": _ANY_OUTCOME
    | {"peak_first_acc", "peak_step", "final_first_acc", "final_over_peak", "majority_acc"}
    | {"peak_over_majority"},
}
_RESTORED = frozenset({"nats_per_token", "nats_per_token_other", "gain", "gain_low", "gain_high"})
_RESTORED |= {"token_acc", "token_acc_other"}
_OF_ITEM = {"vectors", "bits", "text_bytes", "repetition", "text_f1", "cut_f1", "above_cut"}

KINDS = (
    kinds.register(
        kinds.Kind(
            name="wire.encoder",
            params=EncoderParams,
            run=f"{_HERE}.encoder:encoder",
            parallel="ranks",
            yields=_PROVED | {
                "step": REPEAT_STEP, "restored": _RESTORED | {"step", "n", "tokens"},
                "outcome": _ANY_OUTCOME | _RESTORED,
            },
            estimate=f"{_HERE}.cost:of_encoder",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="wire.stage-a",
            params=StageAParams,
            run=f"{_HERE}.training:stage_a",
            parallel="ranks",
            yields=_TRAINING,
            estimate=f"{_HERE}.cost:of_stage_a",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="wire.stage-b",
            params=StageBParams,
            run=f"{_HERE}.training:stage_b",
            parallel="ranks",
            yields=_TRAINING,
            estimate=f"{_HERE}.cost:of_stage_b",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="wire.answer",
            params=AnswerParams,
            run=f"{_HERE}.evaluation:answer",
            yields={
                "item": ITEM | _OF_ITEM,
                "summary": frozenset({"condition", "vectors", "bits", "n", "f1", "em", "best_f1", "first_f1_id",
                                      "bytes", "empty", "repetition", "too_long", "wrong", "histogram", "first_top1",
                                      "first_top5", "nll_per_token"}),
            },
            estimate=f"{_HERE}.cost:of_answer",
        )
    ),
)  # fmt: skip
"""Stages of the study that are its own."""
