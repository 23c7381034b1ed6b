"""Tasks on devices, as a queue without foresight runs them: whatever is ready begins where devices are free.

Graham's list scheduling (1969, SIAM J. Appl. Math. 17(2)): for tasks of one device each, the time is at most
(2 - 1/N) times the best there is. Of those that are ready, the one with the longest way to the end goes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Schedule", "Task", "longest_path", "schedule"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A piece of work that holds devices from its beginning to its end.

    Args:
        seconds: how long.
        devices: how many it holds.
        together: all of them in one machine.
        needs: ids of the tasks that must have ended before.
    """

    id: str
    seconds: float
    devices: int = 1
    together: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When each task runs.

    Args:
        began: task -> seconds after the start.
        seconds: until the last one ended.
    """

    began: Mapping[str, float]
    seconds: float


def schedule(tasks: Sequence[Task], devices: int, a_machine: int) -> Schedule:
    """Run tasks on devices, `a_machine` of them in each machine, the rest in a last one.

    Raises:
        ValueError: a task can never begin: too few devices, or it waits for itself.
    """
    machines = [a_machine] * (devices // a_machine) + [devices % a_machine] * (devices % a_machine > 0)
    state = _State(free=machines)
    left = remaining(tasks)
    waiting = {task.id: len(task.needs) for task in tasks}
    following = _following(tasks)
    by_id = {task.id: task for task in tasks}
    ready = [task for task in tasks if not task.needs]
    while ready or state.running:
        ready.sort(key=lambda task: -left[task.id])
        ready = [task for task in ready if not state.begin(task)]
        if not state.running:
            raise ValueError(f"{ready[0].id} needs {ready[0].devices} devices")
        for ended in state.next_end():
            for id in following[ended]:
                waiting[id] -= 1
                if not waiting[id]:
                    ready.append(by_id[id])
    if len(state.began) < len(tasks):
        raise ValueError(f"{next(task.id for task in tasks if task.id not in state.began)} waits for itself")
    return Schedule(began=state.began, seconds=state.now)


def longest_path(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of the longest chain, in order: no number of devices is faster than the sum of their seconds."""
    left, following = remaining(tasks), _following(tasks)
    by_id = {task.id: task for task in tasks}
    path: list[Task] = []
    options = [task.id for task in tasks if not task.needs]
    while options:
        path.append(by_id[max(options, key=lambda id: left[id])])
        options = following[path[-1].id]
    return path


def remaining(tasks: Sequence[Task]) -> dict[str, float]:
    """Task -> seconds of the longest chain that begins with it; 0 for what waits for itself."""
    following = _following(tasks)
    open_ends = {task.id: len(following[task.id]) for task in tasks}
    by_id = {task.id: task for task in tasks}
    left = dict.fromkeys(by_id, 0.0)
    after = [task for task in tasks if not open_ends[task.id]]
    while after:
        task = after.pop()
        left[task.id] = task.seconds + max((left[id] for id in following[task.id]), default=0.0)
        for need in task.needs:
            open_ends[need] -= 1
            if not open_ends[need]:
                after.append(by_id[need])
    return left


def _following(tasks: Sequence[Task]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {task.id: [] for task in tasks}
    for task in tasks:
        for need in task.needs:
            found[need].append(task.id)
    return found


@dataclass(kw_only=True)
class _State:
    """Free devices of each machine, and what runs: (end, order, task, devices held of each machine)."""

    free: list[int]
    now: float = 0.0
    began: dict[str, float] = field(default_factory=dict)
    running: list[tuple[float, int, str, dict[int, int]]] = field(default_factory=list)

    def begin(self, task: Task) -> bool:
        """Begin a task, where its devices are free."""
        held = self._together(task.devices) if task.together else self._anywhere(task.devices)
        if held is None:
            return False
        for machine, n in held.items():
            self.free[machine] -= n
        heapq.heappush(self.running, (self.now + task.seconds, len(self.began), task.id, held))
        self.began[task.id] = self.now
        return True

    def next_end(self) -> list[str]:
        """Go on to the next moment at which tasks end; these."""
        self.now, ended = self.running[0][0], []
        while self.running and self.running[0][0] <= self.now:
            _, _, id, held = heapq.heappop(self.running)
            ended.append(id)
            for machine, n in held.items():
                self.free[machine] += n
        return ended

    def _together(self, devices: int) -> dict[int, int] | None:
        fitting = [(n, machine) for machine, n in enumerate(self.free) if n >= devices]
        # The fullest machine that has room, so that whole ones stay free.
        return {min(fitting)[1]: devices} if fitting else None

    def _anywhere(self, devices: int) -> dict[int, int] | None:
        if sum(self.free) < devices:
            return None
        held: dict[int, int] = {}
        for n, machine in sorted((n, machine) for machine, n in enumerate(self.free) if n):
            if devices:
                held[machine] = min(n, devices)
                devices -= held[machine]
        return held
