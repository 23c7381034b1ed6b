"""Curves sent to tensorboard, trackio or wandb as well.

The records stay the source: a tracker that fails is told once, in an event, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepwell.errors import StepwellError
from stepwell.stage import Recorder, StageContext

Send = Callable[[int, Mapping[str, float]], None]
CURVES = ("step", "validation")


def tracked(ctx: StageContext, trackers: Sequence[str]) -> StageContext:
    """The same context, whose `step` and `validation` records also go to the trackers.

    Raises:
        StepwellError: a tracker's package is not installed.
    """
    if not trackers:
        return ctx
    recorder = _Tracked(ctx.recorder)
    for name in trackers:
        recorder.add(name, ctx)
    return replace(ctx, recorder=recorder)


@dataclass
class _Tracked:
    """A recorder that also sends numbers by step. A lost connection is an event, never a failed run."""

    inner: Recorder
    senders: dict[str, Send] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def add(self, name: str, ctx: StageContext) -> None:
        try:
            self.senders[name] = _sender(name, ctx)
        except StepwellError:
            raise
        except Exception as error:  # no account, no network, no disk: whatever it is, it is the tracker's
            self._failed(name, error)

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.inner.write(kind, fields)
        if kind not in CURVES:
            return
        numbers = {f"{kind}/{k}": v for k, v in fields.items() if isinstance(v, int | float) and k != "step"}
        for name, send in self.senders.items():
            try:
                send(int(fields["step"]), numbers)
            except Exception as error:
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        if name not in self.told:
            self.told.add(name)
            self.inner.event("tracker-failed", {"tracker": name, "error": f"{type(error).__name__}: {error}"})

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        self.inner.event(event, fields)

    def save(self, state: dict[str, Any]) -> None:
        self.inner.save(state)

    def restored(self) -> dict[str, Any] | None:
        return self.inner.restored()


def _sender(name: str, ctx: StageContext) -> Send:
    try:
        if name == "tensorboard":
            return _tensorboard(ctx)
        import importlib

        tracker = importlib.import_module(name)
    except ImportError as error:
        raise StepwellError(
            f"tracker `{name}` is not installed",
            "pip install 'stepwell[tracking]', or take it out of `trackers`",
            stage=ctx.job.id,
        ) from error
    # wandb and trackio share one interface.
    run = tracker.init(project="stepwell", name=ctx.job.id, config=dict(ctx.job.params))
    return lambda step, numbers: run.log(dict(numbers), step=step)


def _tensorboard(ctx: StageContext) -> Send:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(ctx.folder / "tensorboard"))

    def send(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        # Its own flush comes every two minutes, and none when a process ends.
        writer.flush()

    return send
