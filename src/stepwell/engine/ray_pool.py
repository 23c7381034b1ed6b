"""A pool of Ray actors, each with the model, anywhere on a cluster whose machines share the run folder.

No actor is restarted by Ray: one that dies is replaced here, where its chunk is counted as failed. Text is all that
crosses.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from stepwell.engine.base import JobCall, opened_log
from stepwell.engine.chunk_worker import gone, load
from stepwell.engine.chunks import Ended
from stepwell.engine.launch import environment
from stepwell.engine.pool import Answer, Work, Workers, answer_of, attempt
from stepwell.engine.ray import connect, gpus_of_a_job, kept_signals
from stepwell.engine.remote import package_of
from stepwell.plan import Plan


class ChunkActor:
    """What an actor runs: a job's work, loaded once, on one chunk after another."""

    def __init__(self, call: str, reference: str) -> None:
        self.call, self.reference = JobCall.from_json(call), reference
        self.work: Work | None = None
        with opened_log(self.call) as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)

    def load(self) -> Answer:
        """Load the work; `ready`, or `gone`."""
        try:
            self.work = load(self.call, self.reference)
        except Exception as error:  # told to the job, whatever it is
            return gone(error)
        return Answer(told="ready", cause="", way_out="")

    def take(self, start: int, stop: int) -> Answer:
        """Work on a chunk; `done`, `failed` or `gone`."""
        assert self.work is not None
        try:
            return answer_of(attempt(self.work, range(start, stop)))
        except Exception as error:  # a full disk, say
            return gone(error)


@dataclass(eq=False)
class Place:
    """An actor, and what it was asked: to load, then chunks, with the references of its answers."""

    actor: Any
    loading: Any
    chunks: deque[range] = field(default_factory=deque)
    answers: deque[Any] = field(default_factory=deque)

    @property
    def flying(self) -> int:
        """How many chunks it has."""
        return len(self.chunks)

    @property
    def next(self) -> Any:
        """The reference of what it answers next; None where nothing was asked."""
        return self.loading if self.loading is not None else self.answers[0] if self.answers else None

    def give(self, chunk: range) -> None:
        """Ask it for a chunk."""
        self.chunks.append(chunk)
        self.answers.append(self.actor.take.remote(chunk.start, chunk.stop))

    def end(self) -> None:
        """Kill it, also where it is only out of reach."""
        import ray

        ray.kill(self.actor)


class RayPool(Workers[Place]):
    """Workers as actors, begun when there is a chunk for them.

    Args:
        call: the job; each actor has its threads.
        reference: `module:function` of the work.
        plan: says how many there are, on which cluster, and what share of a GPU each has.
    """

    def __init__(self, call: JobCall, reference: str, plan: Plan) -> None:
        super().__init__(call, reference, plan.devices)
        self.plan, self.joined = plan, False

    def __enter__(self) -> Self:
        """Join the cluster, where this process has not; actors come with their first chunk."""
        ray: Any = package_of("ray", "ray")
        self.joined = not ray.is_initialized()
        with kept_signals():
            connect(ray, self.plan)
        self.gpus_each = gpus_of_a_job(ray, self.plan)
        return self

    def __exit__(self, *error: object) -> None:
        """End all actors: what they have done is kept, and what they do is not."""
        import ray

        super().__exit__(*error)
        if self.joined:
            ray.shutdown()

    def wait(self, seconds: float) -> Sequence[Ended]:
        """What became of chunks."""
        import ray

        asked = {place.next: number for number, place in enumerate(self.places) if place and place.next is not None}
        answered, _ = ray.wait(list(asked), num_returns=1, timeout=seconds)
        return [ended for reference in answered for ended in self._hear(asked[reference], reference)]

    def _hear(self, number: int, reference: Any) -> Iterator[Ended]:
        import ray
        from ray.exceptions import RayError

        place = self.places[number]
        assert place is not None
        try:
            answer: Answer = ray.get(reference)
        except RayError as error:
            self.places[number] = None
            place.end()
            print(f"a worker died: {error}", file=sys.stderr)
            cause = str(error).strip().splitlines()[0]
            yield from self._died(cause, place.chunks, ready=place.loading is None)
            return
        if place.loading is not None:
            place.loading = None
        else:
            place.answers.popleft()
        yield from self._told(answer, place.chunks)

    def _begin(self, place: int) -> Place:
        del place
        ray: Any = package_of("ray", "ray")
        wanted = environment(self.call.threads)
        own = {name: value for name, value in wanted.items() if os.environ.get(name) != value or name == "PYTHONPATH"}
        actor = (
            ray.remote(ChunkActor)
            .options(
                num_cpus=self.call.threads, num_gpus=self.gpus_each, max_restarts=0, max_task_retries=0,
                runtime_env={"env_vars": own},
            )
            .remote(self.call.to_json(), self.reference)
        )  # fmt: skip
        return Place(actor, actor.load.remote())
