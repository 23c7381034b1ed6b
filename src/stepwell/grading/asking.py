"""Answers from elsewhere: an endpoint, a model on this machine, or a file of recorded ones, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from stepwell.chat import Answer, Check, Message, anything, without_thinking
from stepwell.endpoint import Client, Endpoint
from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import Benchmark
from stepwell.localchat import LocalChat, LocalModel
from stepwell.tasks.sources import read_entries

FORMAT = "one object a line, {id, answer}, with one answer for each item"


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


def ask_benchmark(benchmark: Benchmark, ask: Asker) -> tuple[dict[str, str], dict[str, str]]:
    """A reference model's answer to each item, and why there is none for some; those answers are "".

    The thinking before an answer is left out.
    """
    found = ask([one.messages for one in benchmark.questions], [anything] * len(benchmark.questions))
    given = {one.id: answer for one, answer in zip(benchmark.questions, found, strict=True)}
    answers = {name: without_thinking(answer.text or "") for name, answer in given.items()}
    return answers, {name: answer.why for name, answer in given.items() if answer.text is None}


def read_answers(path: Path, benchmark: Benchmark) -> dict[str, str]:
    """Recorded answers to the items of a benchmark, by id.

    Raises:
        StepwellError: the file cannot be used, an id comes twice, or items have no answer. Answers to other items are
            left out: a file may be of the whole set.
    """
    found: dict[str, str] = {}
    for number, entry in enumerate(read_entries(path, FORMAT), start=1):
        name, text = entry.get("id"), entry.get("answer")
        if name is None or not isinstance(text, str):
            raise StepwellError(f"entry {number} has no id or no answer", f"expected {FORMAT}", path=path)
        if str(name) in found:
            raise StepwellError(f"entry {number}: {name!r} was answered before", f"expected {FORMAT}", path=path)
        found[str(name)] = text
    return _of_items(found, benchmark, path)


def _of_items(found: Mapping[str, str], benchmark: Benchmark, path: Path) -> dict[str, str]:
    wanted = [question.id for question in benchmark.questions]
    if missing := [name for name in wanted if name not in found]:
        raise StepwellError(
            f"{len(missing)} of {len(wanted)} items of {benchmark.name} are not answered, {missing[0]!r} for one",
            f"expected {FORMAT}",
            path=path,
        )
    return {name: found[name] for name in wanted}
