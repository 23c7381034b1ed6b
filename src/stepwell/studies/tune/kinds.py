"""The kinds of stage of the study, with the records that each leaves."""

from __future__ import annotations

from stepwell import kinds
from stepwell.studies.tune.params import (
    CorrectParams,
    GradeParams,
    LintParams,
    MergeParams,
    MineParams,
    ReferenceParams,
    RegressParams,
    TuneDataParams,
    TuneModelParams,
    TuneTrainParams,
    VersusParams,
)

_HERE = "stepwell.studies.tune"
CHECK = frozenset({"name", "passed", "detail"})
ITEM = frozenset({"benchmark", "category", "split", "id", "sample", "correct", "status", "partial", "why", "stop"})
ITEM |= {"question", "prediction", "reference"}
RESULT = frozenset({"benchmark", "category", "model", "n", "accuracy", "low", "high", "protocol", "template", "scorer"})
RESULT |= {"unmarked", "warning", "by", "cut", "looping", "stops_warning"}
GRADED = {"item": ITEM, "result": RESULT}

KINDS = (
    kinds.register(
        kinds.Kind(
            name="tune.data",
            params=TuneDataParams,
            run=f"{_HERE}.data:make",
            yields={
                "dataset": frozenset({"set", "n", "sha256", "source", "family", "categories"}),
                "check": CHECK,
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.model",
            params=TuneModelParams,
            run=f"{_HERE}.base:check",
            yields={
                "base": frozenset({"model", "sha256", "dtype", "quantised", "template", "stops"}),
                "check": CHECK,
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.lint",
            params=LintParams,
            run=f"{_HERE}.lint:check",
            yields={
                "linted": frozenset({"n", "replayed", "sha256"}),
                "finding": frozenset({"code", "meaning", "count", "of", "example", "allowed"}),
                "check": CHECK,
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.train",
            params=TuneTrainParams,
            run=f"{_HERE}.training:train",
            parallel="ranks",
            yields={
                "training-set": frozenset(
                    {"n", "left_out", "replayed", "rows", "tokens", "supervised_tokens", "padding_share", "steps"}
                    | {"base", "base_sha256", "trainable"}
                ),
                "step": frozenset({"step", "epoch", "curriculum_stage", "loss", "lr", "grad_norm"}),
                "category": frozenset({"category", "n", "rows", "tasks"}),
                "meta": frozenset({"step", "support_before", "support_after", "query"})
                | {"support_tokens", "query_tokens"},
                "validation": frozenset({"step", "epoch", "curriculum_stage", "accuracy", "n"}),
                "held-out": frozenset({"step", "loss", "tokens", "right"}),
                "alert": frozenset({"monitor", "step", "message", "stopped"}),
                "check": CHECK,
            },
            estimate=f"{_HERE}.cost:of_training",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.merge",
            params=MergeParams,
            run=f"{_HERE}.merging:merge_adapter",
            yields={
                "layer": frozenset({"name", "delta_share", "survived"}),
                "merged": frozenset(
                    {"base", "base_sha256", "merged_sha256", "dtype", "verified", "advice", "reason", "survived"}
                    | {"columns", "max_logit_difference", "largest_logit", "kl_nats", "effect_kl_nats"}
                    | {"top1_agreement", "greedy_agreement"}
                ),
                "continuation": frozenset({"prompt", "text", "agreed", "tokens"}),
                "check": CHECK,
            },
            estimate=f"{_HERE}.cost:of_merge",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.grade",
            params=GradeParams,
            run=f"{_HERE}.grading:grade_model",
            yields={**GRADED, "check": CHECK},
            estimate=f"{_HERE}.cost:of_grading",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.reference",
            params=ReferenceParams,
            run=f"{_HERE}.grading:grade_reference",
            yields={**GRADED, "check": CHECK},
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.versus",
            params=VersusParams,
            run=f"{_HERE}.versus:compare",
            yields={
                "match": frozenset({"benchmark", "category", "id", "outcome", "by", "why"})
                | {"win", "tie", "loss", "undecided", "gained"},
                "versus": frozenset({"benchmark", "category", "ours", "theirs", "n", "win", "tie", "loss", "undecided"})
                | {"win_share", "tie_share", "loss_share", "undecided_share"},
                "judge": frozenset({"benchmark", "model", "pairs", "unparsed", "flips", "flips_low", "flips_high"})
                | {"took_first", "took_longer", "length_wins", "length_losses"},
                "band": frozenset({"benchmark", "outcome", "low", "high", "n", "share", "share_low", "share_high"})
                | {"verdict", "needed", "red_flag"},
                "gain": frozenset({"benchmark", "n", "difference", "low", "high", "p_value", "conclusion"}),
                "check": CHECK,
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.mine",
            params=MineParams,
            run=f"{_HERE}.mining:mine_failures",
            yields={
                **GRADED,
                "failure": frozenset({"id", "category", "question", "prediction", "reference", "why"}),
                "mined": frozenset({"benchmark", "n", "failures", "ties", "contaminated", "without"}),
                "check": CHECK,
            },
            estimate=f"{_HERE}.cost:of_mining",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.correct",
            params=CorrectParams,
            run=f"{_HERE}.correcting:correct",
            yields={
                "correction": frozenset({"id", "category", "right", "status", "why", "stop", "text", "wrong"}),
                "corrected": frozenset({"n", "right", "by"}),
                "check": CHECK,
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="tune.regress",
            params=RegressParams,
            run=f"{_HERE}.versus:regress",
            yields={
                "regression": frozenset({"benchmark", "right_before", "lost", "gained", "left_out", "loss", "n"})
                | {"loss_low", "loss_high", "difference", "difference_low", "difference_high", "p_value", "margin"}
                | {"verdict", "passed", "needed", "reason"},
                "change": frozenset({"benchmark", "id", "difference"}),
                "kept": frozenset({"model", "rolled_back", "verdict", "passed"}),
            },
        )
    ),
)
"""Stages of the study."""
