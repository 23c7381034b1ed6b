"""A pool of processes on this machine, each with the model, on a GPU of its own where there are several."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stepwell.engine.base import JobCall, opened_log
from stepwell.engine.chunks import Ended
from stepwell.engine.launch import environment, outcome_of
from stepwell.engine.pool import Answer, Workers


@dataclass(eq=False)
class Beside:
    """A process, and the chunks that it has, the one under way first."""

    process: subprocess.Popen[bytes]
    chunks: deque[range] = field(default_factory=deque)
    ready: bool = False
    said: bytes = b""

    @property
    def flying(self) -> int:
        """How many chunks it has."""
        return len(self.chunks)

    def give(self, chunk: range) -> None:
        """Send it a chunk. One that is dead already is found so when it is waited for."""
        self.chunks.append(chunk)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"[{chunk.start}, {chunk.stop}]\n".encode())

    def heard(self) -> tuple[list[Answer], bool]:
        """What it has said since, and whether that was all: it has closed its end."""
        assert self.process.stdout is not None
        block = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.said = (self.said + block).split(b"\n")
        return [json.loads(line) for line in lines], not block

    def end(self) -> None:
        """Kill it: what it has done is kept, and what it does is not."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class ProcessPool(Workers[Beside]):
    """Workers as `python -m stepwell.engine.chunk_worker`, begun when there is a chunk for them.

    One that dies is replaced. All of them end with this process.

    Args:
        call: the job; each worker has its threads.
        reference: `module:function` of the work.
        workers: how many.
        device: that the plan asks for.
    """

    def __init__(self, call: JobCall, reference: str, *, workers: int, device: str) -> None:
        super().__init__(call, reference, workers)
        self.visible = visible_devices(device)

    def wait(self, seconds: float) -> Sequence[Ended]:
        """What became of chunks."""
        with selectors.DefaultSelector() as selector:
            for place, worker in enumerate(self.places):
                if worker is not None:
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, place)
            places = [key.data for key, _ in selector.select(seconds)]
        return [ended for place in places for ended in self._hear(place)]

    def _hear(self, place: int) -> Iterator[Ended]:
        worker = self.places[place]
        assert worker is not None
        answers, closed = worker.heard()
        for answer in answers:
            yield from self._told(answer, worker.chunks)
            worker.ready = True
        if closed:
            self.places[place] = None
            cause = outcome_of(self.call, b"", worker.process.wait()).cause
            worker.end()
            print(f"a worker died: {cause}", file=sys.stderr)
            yield from self._died(cause, worker.chunks, ready=worker.ready)

    def _begin(self, place: int) -> Beside:
        options = [self.call.to_json(), self.reference, "--parent", str(os.getpid())]
        chosen = {"CUDA_VISIBLE_DEVICES": self.visible[place % len(self.visible)]} if self.visible else {}
        with opened_log(self.call) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stepwell.engine.chunk_worker", *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**environment(self.call.threads), **chosen}, bufsize=0,
            )  # fmt: skip
        return Beside(process)


def visible_devices(device: str) -> list[str]:
    """The GPUs that workers may be given, one each in turn, as CUDA_VISIBLE_DEVICES names them; none but for CUDA."""
    if device not in ("auto", "cuda"):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return given.split(",")
    import torch

    return [str(place) for place in range(torch.cuda.device_count())]
