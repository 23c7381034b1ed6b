"""Curves sent to tensorboard, trackio or wandb as well. The records stay the source; a tracker that fails is told once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    from dataclasses import replace

    return replace(ctx, recorder=_Tracked(ctx.recorder, [_sender(name, ctx) for name in trackers]))


@dataclass
class _Tracked:
    """A recorder that also sends numbers by step. A lost connection is an event, never a failed run."""

    inner: Recorder
    senders: Sequence[Send]
    _failed: set[int] = field(default_factory=set)

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.inner.write(kind, fields)
        if kind not in CURVES:
            return
        numbers = {f"{kind}/{k}": v for k, v in fields.items() if isinstance(v, int | float) and k != "step"}
        for number, send in enumerate(self.senders):
            try:
                send(int(fields["step"]), numbers)
            except Exception as error:  # whatever a tracker's network or disk does, the run goes on
                if number not in self._failed:
                    self._failed.add(number)
                    self.inner.event("tracker-failed", {"error": f"{type(error).__name__}: {error}"})

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        self.inner.event(event, fields)

    def save(self, state: dict[str, Any]) -> None:
        self.inner.save(state)

    def restored(self) -> dict[str, Any] | None:
        return self.inner.restored()


def _sender(name: str, ctx: StageContext) -> Send:
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(ctx.folder / "tensorboard"))
            return lambda step, numbers: [writer.add_scalar(k, v, step) for k, v in numbers.items()] and None
        import importlib

        # wandb and trackio share one interface.
        tracker = importlib.import_module(name)
        run = tracker.init(project="stepwell", name=ctx.job.id, config=dict(ctx.job.params))
        return lambda step, numbers: run.log(dict(numbers), step=step)
    except ImportError as error:
        raise StepwellError(
            f"tracker `{name}` is not installed", "pip install 'stepwell[tracking]', or take it out of `trackers`"
        ) from error
