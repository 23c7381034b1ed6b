"""One record an answer, and the file in which a graded result lies: whole, and under its protocol."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from stepwell.errors import StepwellError
from stepwell.grading.protocol import Protocol
from stepwell.stats import Estimate, wilson
from stepwell.store.files import write_atomically

Status = Literal["right", "wrong", "silent", "unanswered", "timeout", "memory", "output", "sandbox-error"]
STATUSES: tuple[Status, ...] = get_args(Status)
Category = Literal["maths", "code", "reading", "open"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer to one item, and its mark.

    Attributes:
        id: of the item.
        sample: number of the answer, from 0.
        text: the answer as it was written.
        status: right or wrong; `silent` where there is no ground truth; `unanswered` where no answer could be had from
            who was asked, which is no wrong one; or what ended the execution of the answer.
        partial: the share of it that is right, where the scorer knows one.
        why: what the mark rests on, in a few words.
        stop: how the answer ended, see `stepwell.grading.decoding`; "" where that is not known.
    """

    id: str
    sample: int
    text: str
    status: Status
    partial: float | None = None
    why: str = ""
    stop: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the answer is right; None where ground truth does not say."""
        return {"right": True, "wrong": False}.get(self.status)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A model's answers to one benchmark, marked.

    Attributes:
        model: what wrote the answers, in words or as a hash.
        benchmark: its name.
        category: of its items.
        protocol: how the answers came about.
        records: one an answer, by item and sample.
    """

    model: str
    benchmark: str
    category: Category
    protocol: Protocol
    records: tuple[Record, ...]

    @property
    def statuses(self) -> dict[Status, int]:
        """How many answers have each status, none left out."""
        found = Counter(record.status for record in self.records)
        return {status: found[status] for status in STATUSES}

    @property
    def first_answers(self) -> dict[str, Record]:
        """The first answer to each item, by id."""
        return {record.id: record for record in self.records if record.sample == 0}

    def accuracy(self, confidence: float = 0.95) -> Estimate:
        """Share of right ones among the first answers that could be marked, with Wilson's interval.

        What could not be marked is no wrong answer; `statuses` counts it. An item's further samples are not
        independent of its first: see `stepwell.grading.passk`.
        """
        marks = [record.right for record in self.first_answers.values() if record.right is not None]
        return wilson(sum(marks), len(marks), confidence)


def marks(result: Result) -> dict[str, bool | None]:
    """Whether the first answer to each item is right, by id; None where that could not be found out."""
    return {name: record.right for name, record in result.first_answers.items()}


def paired(first: Mapping[str, bool | None], second: Mapping[str, bool | None]) -> list[str]:
    """The ids of both, in order. Raises StepwellError unless both have the same."""
    if different := sorted(first.keys() ^ second.keys()):
        raise StepwellError(
            f"{len(different)} items were answered by one side only, {different[0]!r} for one",
            "grade both sides on the same items",
        )
    return sorted(first)


def write_result(path: Path, result: Result) -> None:
    """A line that says what it is, then one JSON object a record; whole or not at all."""
    head = {
        "model": result.model, "benchmark": result.benchmark, "category": result.category,
        "protocol": result.protocol.literals(), "fingerprint": result.protocol.fingerprint(), "n": len(result.records),
    }  # fmt: skip
    rows = [head, *(asdict(record) for record in result.records)]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_result(path: Path) -> Result:
    """What `write_result` wrote.

    Raises:
        StepwellError: there is no such file, it is something else, records are missing, or its protocol is not the
            one of its fingerprint.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        head, rows = lines[0], lines[1:]
        protocol = Protocol.of_literals(head["protocol"])
        records = tuple(Record(**row) for row in rows)
        wanted, said = head["n"], head["fingerprint"]
        result = Result(
            model=head["model"], benchmark=head["benchmark"], category=head["category"], protocol=protocol,
            records=records,
        )  # fmt: skip
    except FileNotFoundError:
        raise StepwellError("there is no such file", "name a graded result", path=path) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StepwellError(f"this is no graded result: {error}", "grade the model again", path=path) from None
    if wanted != len(records):
        raise StepwellError(
            f"the result has {len(records)} of its {wanted} records", "grade the model again", path=path
        )
    if said != protocol.fingerprint():
        raise StepwellError(
            "the protocol of this result is not the one of its fingerprint: the file was changed",
            "grade the model again",
            path=path,
        )
    return result


def unmarked_warning(result: Result, most: float = 0.05) -> str:
    """A warning where more answers than the share `most` could not be marked; "" otherwise."""
    statuses = result.statuses
    unmarked = {s: n for s, n in statuses.items() if s not in ("right", "wrong", "silent") and n}
    total = sum(unmarked.values())
    if total <= most * len(result.records):
        return ""
    causes = ", ".join(f"{status} {n}" for status, n in unmarked.items())
    return f"{total} of {len(result.records)} answers could not be marked ({causes}): the shares are of the others"
