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

from stepwell.engine.base import JobCall, log_of
from stepwell.engine.chunk_worker import gone, load
from stepwell.engine.chunks import DIED, Ended
from stepwell.engine.launch import environment
from stepwell.engine.pool import STARTS, Answer, Work, answer_of, attempt, cannot_go_on, never_ready
from stepwell.engine.ray import connect, kept_signals
from stepwell.engine.remote import on_gpus, package_of
from stepwell.plan import Plan


class ChunkActor:
    """What an actor runs: a job's work, loaded once, on one chunk after another."""

    def __init__(self, call: str, reference: str) -> None:
        self.call, self.reference = JobCall.from_json(call), reference
        self.work: Work | None = None
        path = log_of(self.call)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
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
    """An actor, and what it was asked: to load, then chunks, each with the reference of its answer."""

    actor: Any
    loading: Any
    chunks: deque[tuple[Any, range]] = field(default_factory=deque)

    @property
    def next(self) -> Any:
        """The reference of what it answers next; None where nothing was asked."""
        return self.loading if self.loading is not None else self.chunks[0][0] if self.chunks else None


class RayPool:
    """Workers as actors, begun when there is a chunk for them.

    Args:
        call: the job; each actor has its threads.
        reference: `module:function` of the work.
        plan: says how many there are, on which cluster, and what share of a GPU each has.
    """

    def __init__(self, call: JobCall, reference: str, plan: Plan) -> None:
        self.call, self.reference, self.plan = call, reference, plan
        self.places: list[Place | None] = [None] * plan.devices
        self.deaths, self.joined = 0, False

    def __enter__(self) -> Self:
        """Join the cluster, where this process has not; actors come with their first chunk."""
        ray: Any = package_of("ray", "ray")
        self.joined = not ray.is_initialized()
        with kept_signals():
            connect(ray, self.plan)
        here = self.plan.device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0
        self.gpus_each = self.plan.ray.gpus_per_job if on_gpus(self.plan) and here else 0.0
        return self

    def __exit__(self, *error: object) -> None:
        """End all actors: what they have done is kept, and what they do is not."""
        import ray

        for place in self.places:
            if place is not None:
                ray.kill(place.actor)
        self.places = [None] * len(self.places)
        if self.joined:
            ray.shutdown()

    def idlest(self) -> int:
        """Chunks in flight at the actor that has the fewest."""
        return min(_load(place) for place in self.places)

    def submit(self, chunk: range) -> None:
        """Give a chunk to the actor that has the fewest; begin it, where it is not there."""
        number = min(range(len(self.places)), key=lambda number: _load(self.places[number]))
        place = self.places[number] = self.places[number] or self._begin()
        place.chunks.append((place.actor.take.remote(chunk.start, chunk.stop), chunk))

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
            yield from self._bury(number, place, error)
            return
        if answer["told"] == "gone":
            raise cannot_go_on(answer)
        if answer["told"] == "ready":
            place.loading, self.deaths = None, 0
        else:
            _, chunk = place.chunks.popleft()
            yield Ended(chunk, "done" if answer["told"] == "done" else "failed", answer["cause"])

    def _bury(self, number: int, place: Place, error: Exception) -> Iterator[Ended]:
        """An actor is dead: the chunk that it was at has failed, and the other one comes back."""
        import ray

        self.places[number] = None
        ray.kill(place.actor)  # where it is only out of reach
        cause = str(error).strip().splitlines()[0]
        print(f"a worker died: {error}", file=sys.stderr)
        if place.loading is None:
            yield Ended(place.chunks.popleft()[1], "failed", DIED)
        else:
            self.deaths += 1
            if self.deaths == STARTS:
                raise never_ready(cause)
        yield from (Ended(chunk, "returned") for _, chunk in place.chunks)

    def _begin(self) -> Place:
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


def _load(place: Place | None) -> int:
    return 0 if place is None else len(place.chunks)
