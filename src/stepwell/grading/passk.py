"""pass@k: the chance that one of k answers is right, without bias (Chen et al. 2021, arXiv 2107.03374, equation 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stepwell.errors import StepwellError
from stepwell.grading.records import Result
from stepwell.stats import Estimate, bootstrap_mean, wilson


def pass_at_k(n: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): of n answers, c are right, and k are drawn without putting back.

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= right <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {right} right ones among {n} answers is not defined")
    if n - right < k:
        return 1.0
    # The product of the paper's appendix: binomials of large n do not fit into a float.
    return 1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1))


@dataclass(frozen=True, kw_only=True)
class PassAtK:
    """pass@k over a benchmark.

    Attributes:
        k: answers drawn.
        estimate: mean over items, with an interval over items: Wilson's where each has one answer, else bootstrap.
        limits: answers that a limit ended; they did not pass.
        lost: answers that the sandbox could not execute; they are no answers, and their items have fewer.
        items: items that were left with fewer than k answers, and are not in the mean.
    """

    k: int
    estimate: Estimate
    limits: int
    lost: int
    items: int


def passed(result: Result, k: int, confidence: float = 0.95) -> PassAtK:
    """pass@k of a graded result.

    Raises:
        StepwellError: no item has k answers.
    """
    by_item: dict[str, list[bool]] = {}
    for record in result.records:
        found = by_item.setdefault(record.id, [])
        if record.status != "sandbox-error":
            found.append(record.right is True)
    enough = [answers for answers in by_item.values() if len(answers) >= k]
    if k < 1 or not enough:
        most = max((len(answers) for answers in by_item.values()), default=0)
        raise StepwellError(
            f"pass@{k} is asked for, and items have {most} answers at most",
            "decode more samples, at a temperature above 0, or ask for a smaller k",
        )
    values = [pass_at_k(len(answers), sum(answers), k) for answers in enough]
    single = all(len(answers) == 1 for answers in enough)
    statuses = result.statuses
    return PassAtK(
        k=k,
        estimate=wilson(sum(values), len(values), confidence) if single else bootstrap_mean(values, confidence),
        limits=statuses["timeout"] + statuses["memory"] + statuses["output"],
        lost=statuses["sandbox-error"],
        items=len(by_item) - len(enough),
    )
