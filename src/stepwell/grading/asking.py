"""Answers from elsewhere: an endpoint, a model on this machine, or a file of recorded ones, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stepwell.chat import Answer, Check, Message, anything, without_thinking
from stepwell.endpoint import Client, Endpoint
from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import Benchmark
from stepwell.grading.decoding import Stop
from stepwell.grading.stops import Stops
from stepwell.localchat import LocalChat, LocalModel
from stepwell.tasks.sources import read_entries

FORMAT = "one object a line, {id, answer}, with one answer for each item"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Answers to the items of a benchmark.

    Attributes:
        texts: by item; "" where there is none.
        stops: how they ended, by item; those of which nobody says it are left out.
        why: why there is none, by item.
    """

    texts: Mapping[str, str]
    stops: Mapping[str, Stop]
    why: Mapping[str, str]

    @property
    def ends(self) -> Stops | None:
        """How those ended of which that is known; None where it is known of none."""
        return Stops.told([(self.texts[name], stop) for name, stop in self.stops.items()]) if self.stops else None


class Asker(Protocol):
    """Whatever answers conversations, each with its own check; in order."""

    def __call__(self, conversations: Sequence[Sequence[Message]], checks: Sequence[Check]) -> list[Answer]:
        """The answers. Raises StepwellError where nobody can be asked."""
        ...


def asker(
    source: Endpoint | LocalModel, cache: Path, *, device: str = "auto", between: Callable[[], None] | None = None
) -> Asker:
    """Asks an endpoint or a local model, and keeps every answer in `cache`; see `stepwell.endpoint.Client`."""
    if isinstance(source, LocalModel):
        return LocalChat(source, cache, device=device, between=between).ask_all
    endpoint = source

    def ask(conversations: Sequence[Sequence[Message]], checks: Sequence[Check]) -> list[Answer]:
        with Client(endpoint, cache, between=between) as client:
            return [client.ask(one, check) for one, check in zip(conversations, checks, strict=True)]

    return ask


def ask_benchmark(benchmark: Benchmark, ask: Asker) -> Given:
    """Another model's answer to each item. The thinking before an answer is left out."""
    found = ask([one.messages for one in benchmark.questions], [anything] * len(benchmark.questions))
    given = {one.id: answer for one, answer in zip(benchmark.questions, found, strict=True)}
    return Given(
        texts={name: without_thinking(answer.text or "") for name, answer in given.items()},
        stops=_stops({name: answer.cut for name, answer in given.items()}),
        why={name: answer.why for name, answer in given.items() if answer.text is None},
    )


def _stops(cut: Mapping[str, bool | None]) -> dict[str, Stop]:
    return {name: "length" if one else "end" for name, one in cut.items() if one is not None}


def read_answers(path: Path, benchmark: Benchmark) -> Given:
    """Recorded answers to the items of a benchmark; where an entry has `cut`, it says whether a limit ended the answer.

    Raises:
        StepwellError: the file cannot be used, an id comes twice, or items have no answer. Answers to other items are
            left out: a file may be of the whole set.
    """
    found: dict[str, str] = {}
    cut: dict[str, bool | None] = {}
    for number, entry in enumerate(read_entries(path, FORMAT), start=1):
        name, text = entry.get("id"), entry.get("answer")
        if name is None or not isinstance(text, str):
            raise StepwellError(f"entry {number} has no id or no answer", f"expected {FORMAT}", path=path)
        if str(name) in found:
            raise StepwellError(f"entry {number}: {name!r} was answered before", f"expected {FORMAT}", path=path)
        if not isinstance(entry.get("cut"), bool | None):
            raise StepwellError(f"entry {number}: `cut` is neither true nor false", f"expected {FORMAT}", path=path)
        found[str(name)], cut[str(name)] = text, entry.get("cut")
    texts = _of_items(found, benchmark, path)
    return Given(texts=texts, stops=_stops({name: cut[name] for name in texts}), why={})


def _of_items(found: Mapping[str, str], benchmark: Benchmark, path: Path) -> dict[str, str]:
    wanted = [question.id for question in benchmark.questions]
    if missing := [name for name in wanted if name not in found]:
        raise StepwellError(
            f"{len(missing)} of {len(wanted)} items of {benchmark.name} are not answered, {missing[0]!r} for one",
            f"expected {FORMAT}",
            path=path,
        )
    return {name: found[name] for name in wanted}
