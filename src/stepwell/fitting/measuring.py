"""What given vectors say of problems: the loss of any c, fitted, random, shuffled, noisy or quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fitting.contexts import Contexts
from stepwell.fitting.objective import at_targets
from stepwell.fitting.recipe import CPU_COLUMNS, GPU_COLUMNS
from stepwell.fitting.rows import by_mode, rows_of
from stepwell.latents.prompt import Problem, fault_of, mode_vectors
from stepwell.memory import is_out_of_memory
from stepwell.shapes import Backbone, frozen


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one c says of its problem; the fields as in `result.Record`."""

    nats: Mapping[str, float]
    own: Mapping[str, float]
    exact: Mapping[str, bool]
    held: Mapping[str, int]
    lead: Mapping[str, float]


def columns_of(backbone: Backbone, columns: int | None) -> int:
    """Columns of one pass: as given, else what fills the device (a pass that does not fit is halved anyway)."""
    kind = next(backbone.parameters()).device.type
    return columns or (CPU_COLUMNS if kind == "cpu" else GPU_COLUMNS)


@torch.no_grad()
def measure(
    backbone: Backbone,
    problems: Sequence[Problem],
    vectors: Sequence[Tensor],
    *,
    modes: Mapping[str, int | str | Tensor],
    columns: int | None = None,
) -> list[Measured]:
    """Losses and exactness of given vectors, without fitting anything.

    Args:
        backbone: a model; its weights are not changed.
        problems: one a c; the same problem may come several times.
        vectors: a c (K, D) for each; all of one K.
        modes: as for `fit`.
        columns: of one pass at most, contexts included; halved when memory runs out.

    Returns:
        One `Measured` a c, in order.

    Raises:
        StepwellError: numbers that do not match, a problem that is impossible, no memory for a single row.
    """
    if len(problems) != len(vectors):
        raise StepwellError(f"there are {len(vectors)} c for {len(problems)} problems", "give one for each")
    if not problems:
        return []
    known, slots = mode_vectors(backbone, modes), len(vectors[0])
    for problem, given in zip(problems, vectors, strict=True):
        if given.shape != (slots, backbone.width):
            raise StepwellError(
                f"the c of problem `{problem.id}` has the shape {tuple(given.shape)}",
                f"give (K, D) = {(slots, backbone.width)} for all",
            )
        if (fault := fault_of(backbone, problem, known, slots)) is not None:
            raise StepwellError(f"problem `{problem.id}`: {fault}", "leave it out, or change it")
    found: list[Measured] = []
    room, contexts = columns_of(backbone, columns), Contexts(backbone)
    with frozen(backbone):
        # As many cases at a time as fill about four passes: their vectors need not all be on the device.
        at = 0
        while at < len(problems):
            end, filled = at, 0
            while end < len(problems) and (end == at or filled < 4 * room):
                filled += sum(problems[end].widths(slots))
                end += 1
            contexts.keep(problems[at:end])
            part, room = some(backbone, problems[at:end], torch.stack(list(vectors[at:end])), known, room, contexts)
            found += part
            at = end
    return found


@torch.no_grad()
def some(
    backbone: Backbone,
    problems: Sequence[Problem],
    vectors: Tensor,
    modes: Mapping[str, Tensor],
    columns: int,
    contexts: Contexts,
) -> tuple[list[Measured], int]:
    """`measure` of a few c (N, K, D) together, on a frozen backbone; and the columns that had room."""
    device, slots = next(backbone.parameters()).device, vectors.shape[1]
    while True:
        try:
            targets = [problem.targets for problem in problems]
            rows = rows_of(backbone, targets, modes, slots, columns, contexts.of(problems))
            parts = []
            for each in rows:
                hidden = each.prompt.hidden(backbone, vectors.to(device)[each.case])
                parts.append(each.each(at_targets(backbone, hidden, each.prompt.tokens, slopes=False)))
            break
        except RuntimeError as error:
            columns = halved(error, columns, [width for problem in problems for width in problem.widths(slots)])
    numbers = by_mode(parts, rows, len(problems), len(modes)).numbers().double().cpu()
    return [measured(problem, each, tuple(modes)) for problem, each in zip(problems, numbers, strict=True)], columns


def measured(problem: Problem, numbers: Tensor, modes: Sequence[str]) -> Measured:
    """The numbers (4, M) of one case by name, for the modes that its problem has."""
    nats, own, lead, held = numbers.tolist()
    at = {name: i for i, name in enumerate(modes) if any(target.mode == name for target in problem.targets)}
    return Measured(
        nats={name: nats[i] for name, i in at.items()},
        own={name: own[i] for name, i in at.items()},
        exact={name: lead[i] > 0 for name, i in at.items()},
        held={name: int(held[i]) for name, i in at.items()},
        lead={name: lead[i] for name, i in at.items()},
    )


def halved(error: RuntimeError, columns: int, widths: Sequence[int]) -> int:
    """Half the columns, after memory ran out in passes of rows of these widths.

    Raises the error where it is another, or StepwellError where one row has no room.
    """
    if not is_out_of_memory(error):
        raise error
    if columns <= min(widths):
        raise StepwellError(
            f"there is no memory for a single row of {min(widths)} columns",
            "use a smaller model, fewer slots, shorter targets or contexts, or a lower precision",
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(min(columns, max(widths) * len(widths)) // 2, 1)
