"""Parameters of the study's probing and tracing, and their kinds. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from stepwell import kinds
from stepwell.plan.problems import Problem
from stepwell.spec import Spec
from stepwell.studies.thoughts.params import NO_GRAPH, AskParams, Count, is_written

POSITION = r"^(question end(, one before)?|start marker|thought [1-9][0-9]*|end marker)$"
"""Names that positions of a probe have."""


class ProbeParams(AskParams):
    """Probes of every layer and position for the entity of every step.

    Attributes:
        layers: 0 = what enters the first layer; empty = all.
        steps: of the gold path, from 1; empty = all.
        probes: see `stepwell.analysis.probing.PROBES`.
        folds: every item is scored once, in one of them.
        inner: folds of the training rows by which the regularisation is chosen.
        permutations: of the labels, for `ridge`; p cannot be smaller than 1 / (permutations + 1).
        mlp_permutations: for `mlp`, which is fitted anew for each.
        mlp_layers, mlp_steps, mlp_positions: those of the cells that `mlp` is asked of; empty = all. It costs far more
            than `ridge`, and on few cells few permutations can decide. Positions by name, such as `thought 1`.
        smallest_class: a cell is undefined where an entity has fewer items.
    """

    layers: tuple[Count, ...] = ()
    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    probes: tuple[Literal["ridge", "mlp"], ...] = ("ridge",)
    folds: int = Field(default=5, ge=2)
    inner: int = Field(default=3, ge=2)
    permutations: Count = 999
    mlp_permutations: Count = 1
    mlp_layers: tuple[Count, ...] = ()
    mlp_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    mlp_positions: tuple[Annotated[str, Field(pattern=POSITION)], ...] = ()
    smallest_class: int = Field(default=5, ge=1)

    def problems(self, needed: Mapping[str, Spec]) -> list[Problem]:
        """Whether there are entities to probe for."""
        return [Problem((), f"{NO_GRAPH} whose entities could be probed for: leave the stage out")] * is_written(needed)


class TraceParams(AskParams):
    """Causal tracing: states of the clean question put into a question about the other person.

    Attributes:
        items: of each set, the first so many that can be corrupted; 0 = all.
        layers: 0 = what enters the first layer; empty = all.
        smallest_gap: an effect is undefined where the probability of the right option falls by less than this between
            the clean and the corrupt question.
        decode: let every run write its steps before the options are compared; without, the options follow at once,
            and the steps that `cot` writes are no positions.
    """

    items: Count = 100
    layers: tuple[Count, ...] = ()
    smallest_gap: float = Field(default=0.05, ge=0, lt=1)
    decode: bool = True
    batch_size: int = Field(default=50, ge=1)

    def problems(self, needed: Mapping[str, Spec]) -> list[Problem]:
        """Whether there is another person to ask about."""
        return [Problem((), f"{NO_GRAPH} to corrupt, nor two options: leave the stage out")] * is_written(needed)


_HERE = "stepwell.studies.thoughts"

KINDS = (
    kinds.register(
        kinds.Kind(
            name="thoughts.probe",
            params=ProbeParams,
            run=f"{_HERE}.probing:probe",
            yields={
                "probe": frozenset({"set", "layer", "position", "position_name", "role", "step", "probe", "n"})
                | {"classes", "accuracy", "low", "high", "control_accuracy", "selectivity", "chance"}
                | {"accuracy_elsewhere", "accuracy_question", "p_value", "permutations", "p_adjusted"}
                | {"p_adjusted_least", "undefined"},
                "fold": frozenset({"set", "fold", "used", "scored"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
            estimate=f"{_HERE}.analysis_cost:of_probing",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="thoughts.trace",
            params=TraceParams,
            run=f"{_HERE}.tracing:trace",
            yields={
                "trace": frozenset({"set", "id", "layer", "position", "position_name", "role"})
                | {"clean", "corrupt", "patched", "effect"},
                "trace-item": frozenset({"set", "id", "clean", "corrupt", "clean_above"}),
                "trace-set": frozenset({"set", "n", "of", "left_out"}),
            },
            estimate=f"{_HERE}.analysis_cost:of_tracing",
        )
    ),
)
