"""Fitting many small problems at once: the loop that fills the batch, looks at it, and retires what is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.fitting.contexts import Contexts
from stepwell.fitting.measuring import Measured, columns_of, halved, measured, some
from stepwell.fitting.noise import seed_of
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.result import End, Fitted, Record, finite, identity_of
from stepwell.fitting.rows import ByMode, Rows, by_mode, one_pass, rows_of
from stepwell.fitting.state import Space, State, advance, noise_now
from stepwell.latents.prompt import Problem, fault_of, mode_vectors, problem_of
from stepwell.shapes import frozen

Ended = tuple[Record, Tensor]
Finished = Callable[[Record, Tensor], None]
Given = Problem | str | Mapping[str, str | Sequence[str]]
DEFAULT = FitRecipe(until_exact=True, lr=0.03, schedule="constant", init="table")
"""Quick to be exact: a rate and a start that hold short texts in tens of steps; more restarts only where one failed."""
_passed: WeakSet[Any] = WeakSet()


def fit(
    backbone: Any,
    problems: Sequence[Given],
    *,
    slots: int,
    recipe: FitRecipe = DEFAULT,
    modes: Mapping[str, int | str | Tensor] | None = None,
    seed: int = 0,
    columns: int | None = None,
    look_every: int | None = None,
    bars: Mapping[str, Mapping[str, float]] | None = None,
    impossible: Literal["raise", "record"] = "raise",
    resume: Iterable[Ended] = (),
    failed: Mapping[str, str] | None = None,
    finished: Finished | None = None,
    stop: Callable[[], bool] | None = None,
    keep: bool = True,
    check: bool = True,
) -> Fitted:
    """Fit K vectors to each problem, so that the frozen model writes the problem's targets from them.

    What a restart of a problem gives depends on the model, the problem, the recipe and its seed, hash(seed, id,
    restart); not on what is fitted beside it, on the order, on `columns`, on `look_every`, or on a resume, but for
    rounding: passes of other shapes add in another order.

    Args:
        backbone: any `Backbone`; its weights get no gradients and stay as they are.
        problems: as `Problem`s, or as texts for a backbone with a tokenizer: a text, or mode -> text, or mode ->
            paraphrases; such a problem's id is its number.
        slots: K, vectors a problem.
        recipe: how; by default one that stops at the first restart that is exact.
        modes: name -> token id, text of one token, or vector (D,); None = the first token of each mode's name.
        seed: of the run.
        columns: of one forward pass at most, contexts included; None = 1,024 on a CPU, 16,384 elsewhere. Halved when
            memory runs out.
        look_every: steps between two looks of the host at what is done; None = 1 on a CPU, 10 elsewhere.
        bars: problem id -> mode -> nats a token below which the mode counts as converged.
        impossible: what to do with a problem that cannot be fitted (empty, too long, unknown token, ...).
        resume: restarts that came to an end earlier, as `finished` got them or `Fitted.ended` gives them; they are not
            run again.
        failed: problem id -> an error that ended every try; it is not tried again, and recorded as `failed`.
        finished: called with each restart that ends now, and its vectors (K, D) on the CPU; what it raises ends the
            fit.
        stop: asked first and at each look; True = end now, and record what was not finished as `stopped`.
        keep: whether the vectors are in the result. Without, memory does not grow with the number of problems, and
            `finished` has to store them.
        check: run `self_test` first, once a model.

    Returns:
        Vectors, records and a decoder.

    Raises:
        StepwellError: K below 1, no mode vector, an impossible problem, a restart to resume from that was fitted
            otherwise, a failed self-test, no memory for a single row.
    """
    if slots < 1:
        raise StepwellError(f"there are {slots} slots", "give one at least: slots=8")
    made = [p if isinstance(p, Problem) else problem_of(backbone, str(i), p) for i, p in enumerate(problems)]
    names = list(dict.fromkeys(target.mode for problem in made for target in problem.targets))
    known = mode_vectors(backbone, names if modes is None else modes)
    if not known and made:
        raise StepwellError("there are no modes", "give one at least: modes={'text': 0}")
    faults = _faults(backbone, made, known, slots)
    if faults and impossible == "raise":
        first = next(iter(faults))
        more = f" (and {len(faults) - 1} more problems cannot be fitted)" if len(faults) > 1 else ""
        raise StepwellError(
            f"problem `{first}`: {faults[first]}{more}", "leave it out, or record it as such: impossible='record'"
        )
    if check:
        _require_self_test(backbone)
    kind = next(backbone.parameters()).device.type
    engine = _Engine(
        backbone=backbone, recipe=recipe, modes=known, slots=slots, seed=seed, columns=columns_of(backbone, columns),
        look_every=look_every or (1 if kind == "cpu" else 10), bars=bars or {}, finished=finished,
        stop=stop or (lambda: False), keep=keep,
    )  # fmt: skip
    with frozen(backbone):
        return engine.run(made, faults, failed or {}, tuple(resume))


def _require_self_test(backbone: Any) -> None:
    from stepwell.fitting.selftest import self_test  # which fits, too

    if backbone in _passed:
        return
    found = self_test(backbone)
    if not found.passed:
        raise StepwellError(
            f"the self-test of the labels failed: {found.detail}",
            "what a state predicts is not the token it is asked for: look at the shift of the labels",
        )
    _passed.add(backbone)


def _faults(backbone: Any, problems: Sequence[Problem], modes: Mapping[str, Tensor], slots: int) -> dict[str, str]:
    faults: dict[str, str] = {}
    seen: set[str] = set()
    stops = {target.ids[-1] for problem in problems for target in problem.targets if target.ids}
    for problem in problems:
        if problem.id in seen:
            raise StepwellError(f"two problems have the id `{problem.id}`", "give each its own: seeds come from it")
        seen.add(problem.id)
        if (fault := fault_of(backbone, problem, modes, slots)) is not None:
            faults[problem.id] = fault
        elif inner := sorted(stops.intersection(i for target in problem.targets for i in target.ids[:-1])):
            faults[problem.id] = f"it has the token {inner[0]}, with which targets end: decoding would stop there"
    return faults


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One restart of one problem; `shown` tokens of each target are asked for at present (None = all)."""

    problem: Problem
    restart: int
    seed: int
    shown: int | None
    stages: int = 0

    @property
    def present(self) -> Problem:
        """The problem, as far as it is asked for at present."""
        targets = tuple(replace(target, ids=target.ids[: self.shown]) for target in self.problem.targets)
        return replace(self.problem, targets=targets)

    @property
    def whole(self) -> bool:
        return self.shown is None or self.shown >= self.problem.longest


class _Engine:
    """One call of `fit`: cases waiting and cases on the device."""

    def __init__(
        self, *, backbone: Any, recipe: FitRecipe, modes: Mapping[str, Tensor], slots: int, seed: int, columns: int,
        look_every: int, bars: Mapping[str, Mapping[str, float]], finished: Finished | None, stop: Callable[[], bool],
        keep: bool,
    ) -> None:  # fmt: skip
        self.backbone, self.recipe, self.modes, self.slots = backbone, recipe, modes, slots
        self.seed, self.columns, self.look_every, self.bars = seed, columns, look_every, bars
        self.finished, self.stop, self.keep = finished, stop, keep
        self.marks = {name: fingerprint(vector.double().tolist()) for name, vector in modes.items()}
        self.space = Space.of(backbone, recipe)
        self.contexts = Contexts(backbone)
        self.device = next(backbone.parameters()).device
        self.waiting: deque[_Case] = deque()
        self.cases: list[_Case] = []
        self.state: State | None = None
        self.rows: list[Rows] = []
        self.found: ByMode | None = None
        self.records: dict[tuple[str, int], Record] = {}
        self.vectors: dict[str, Tensor] = {}

    def run(
        self, problems: Sequence[Problem], faults: Mapping[str, str], failed: Mapping[str, str], resume: Sequence[Ended]
    ) -> Fitted:
        points = self._points(problems)
        self._queue(problems, faults, failed, resume)
        while not self.stop() and self._fill(points):
            for _ in range(self.look_every):
                self._step()
            self._look()
        self._leave("stopped")
        order = [(problem.id, restart) for problem in problems for restart in range(self.recipe.restarts)]
        stops = sorted({target.ids[-1] for problem in problems for target in problem.targets if target.ids})
        return Fitted(
            vectors=self.vectors, records=tuple(self.records[key] for key in order),
            modes={name: vector.detach().cpu() for name, vector in self.modes.items()}, stops=tuple(stops),
            recipe=self.recipe, slots=self.slots, seed=self.seed, backbone=self.backbone,
            contexts={p.id: p.context for p in problems if p.context and p.id in self.vectors},
        )  # fmt: skip

    def _points(self, problems: Sequence[Problem]) -> int:
        stage = self.recipe.progressive
        longest = max((problem.longest for problem in problems), default=0)
        stages = 1 if stage is None else -(-longest // stage)
        return self.recipe.steps * stages // self.recipe.curve_every + 1

    # Cases come.

    def _queue(
        self, problems: Sequence[Problem], faults: Mapping[str, str], failed: Mapping[str, str], resume: Sequence[Ended]
    ) -> None:
        old = {(record.id, record.restart): (record, vectors) for record, vectors in resume}
        for problem in problems:
            for restart in range(self.recipe.restarts):
                case = self._case(problem, restart)
                if problem.id in faults:
                    self._record(case, self._empty(case, "impossible", faults[problem.id]))
                elif problem.id in failed:
                    self._record(case, self._empty(case, "failed", failed[problem.id]))
                elif (known := old.get((problem.id, restart))) is None:
                    self.waiting.append(case)
                    if self.recipe.until_exact:
                        break
                else:
                    self._take(case, *known)
                    if self.recipe.until_exact and known[0].all_exact:
                        self._not_needed(problem, restart)
                        break

    def _take(self, case: _Case, record: Record, vectors: Tensor) -> None:
        mine = self._empty(case, record.end)
        if (record.seed, record.identity) != (mine.seed, mine.identity):
            raise StepwellError(
                f"restart {record.restart} of problem `{record.id}` was fitted otherwise: its context, targets, modes, "
                "recipe, slots or seed are not these",
                "resume with what the fit began with, or begin anew without `resume`",
            )
        self._record(case, record, vectors)

    def _case(self, problem: Problem, restart: int) -> _Case:
        seed = seed_of(self.seed, problem.id, restart)
        return _Case(problem=problem, restart=restart, seed=seed, shown=self.recipe.progressive)

    def _fill(self, points: int) -> bool:
        """Put waiting cases beside those on the device while there is room; False when there are none at all."""
        filled = sum(map(self._size, self.cases))
        new: list[_Case] = []
        while self.waiting and (filled + self._size(self.waiting[0]) <= self.columns or not (self.cases or new)):
            new.append(self.waiting.popleft())
            filled += self._size(new[-1])
        if new:
            seeds = torch.tensor([case.seed for case in new], device=self.device)
            begun = State.begin(self.space.begin(seeds, self.slots), seeds, points=points, modes=len(self.modes))
            self.state = begun if self.state is None else self.state.join(begun)
            self.cases += new
            self.rows = []
        if not self.rows:
            # After the next restart of a problem took the place of the last: a context is computed once.
            self.contexts.keep(case.problem for case in self.cases)
        return bool(self.cases)

    def _size(self, case: _Case) -> int:
        return sum(case.present.widths(self.slots))

    # Cases are worked on.

    def _step(self) -> None:
        state, recipe = self.state, self.recipe
        assert state is not None
        noise = noise_now(recipe, state, (self.slots, self.backbone.width)) if recipe.noise else None

        def vectors(inner: Tensor, case: Tensor) -> Tensor:
            found = self.space.vectors(inner)
            return found if noise is None else found + noise[case]

        while True:
            try:
                if not self.rows:
                    self.rows = self._rows()
                parts = [one_pass(self.backbone, rows, state.inner, vectors, recipe) for rows in self.rows]
                break
            except RuntimeError as error:
                # The state is as it was: the step begins again, in more passes.
                every = [width for case in self.cases for width in case.present.widths(self.slots)]
                self.columns, self.rows = halved(error, self.columns, every), []
        self.found = by_mode(parts, self.rows, len(self.cases), len(self.modes))
        advance(state, self.found, recipe, self.space)

    def _rows(self) -> list[Rows]:
        shown = [case.present for case in self.cases]
        return rows_of(
            self.backbone, [problem.targets for problem in shown], self.modes, self.slots, self.columns,
            self.contexts.of(shown),
        )  # fmt: skip

    # Cases go.

    def _look(self) -> None:
        state, found = self.state, self.found
        assert state is not None and found is not None
        flags = torch.stack((state.held, state.broken, state.full), 1).tolist()
        stay = []
        for row, (case, (held, broken, full)) in enumerate(zip(self.cases, flags, strict=True)):
            if held and not case.whole:
                self._show_more(row)
                stay.append(row)
            elif held or broken or full:
                self._end(row, "exact" if held else "not finite" if broken else "steps")
            else:
                stay.append(row)
        if len(stay) < len(self.cases):
            self.state = state.select(torch.tensor(stay, device=self.device, dtype=torch.long))
            self.cases, self.rows = [self.cases[row] for row in stay], []

    def _show_more(self, row: int) -> None:
        state, case = self.state, self.cases[row]
        assert state is not None and case.shown is not None and self.recipe.progressive is not None
        state.kept[row] = state.inner[row]
        state.held[row] = False
        state.stage[row] = 0
        shown = case.shown + self.recipe.progressive
        self.cases[row], self.rows = replace(case, shown=shown, stages=case.stages + 1), []

    def _end(self, row: int, end: End) -> None:
        state, case, found = self.state, self.cases[row], self.found
        assert state is not None and found is not None
        back = case.stages > 0 and end != "exact"  # to where the last stage was held
        vectors = self.space.vectors(state.kept[row : row + 1] if back else state.inner[row : row + 1])[0].detach()
        if back or not case.whole:
            # The last pass saw a part of the targets, or other vectors: what is handed out is measured whole.
            (numbers,), _ = some(self.backbone, [case.problem], vectors[None], self.modes, self.columns, self.contexts)
        else:
            numbers = measured(case.problem, found.numbers()[row].double().cpu(), tuple(self.modes))
        record = self._ended(case, end, numbers if back or end != "not finite" else None, row)
        vectors = vectors.cpu()
        self._record(case, record, vectors)
        if self.finished is not None:
            self.finished(record, vectors)
        if self.recipe.until_exact:
            if record.all_exact:
                self._not_needed(case.problem, case.restart)
            elif case.restart + 1 < self.recipe.restarts:
                self.waiting.appendleft(self._case(case.problem, case.restart + 1))

    def _ended(self, case: _Case, end: End, numbers: Measured | None, row: int) -> Record:
        state, record = self.state, self._empty(case, end)
        assert state is not None
        steps = int(state.taken[row])
        cosine, opposed = float(state.cosine[row]), float(state.opposed[row])
        several = len({target.mode for target in case.problem.targets}) > 1
        record = replace(
            record, steps=steps, curve=self._curve(case, row),
            gradient_cosine=finite(cosine / steps) if several and steps else None,
            opposed=opposed / steps if several and steps else None,
        )  # fmt: skip
        if numbers is None:
            return record
        bars = self.bars.get(case.problem.id)
        return replace(
            record, nats=numbers.nats, own=numbers.own, exact=numbers.exact, held=numbers.held, lead=numbers.lead,
            tokens={mode: max(len(t.ids) for t in case.problem.targets if t.mode == mode) for mode in numbers.nats},
            converged=None if bars is None else all(numbers.nats[mode] < bars[mode] for mode in numbers.nats),
        )  # fmt: skip

    def _curve(self, case: _Case, row: int) -> dict[str, tuple[tuple[int, float], ...]]:
        assert self.state is not None
        points = self.state.curve[row].double().cpu()
        present = {target.mode for target in case.problem.targets}
        return {
            mode: tuple(
                (at * self.recipe.curve_every, nats)
                for at, nats in enumerate(points[:, number].tolist())
                if finite(nats) is not None
            )
            for number, mode in enumerate(self.modes)
            if mode in present
        }

    def _not_needed(self, problem: Problem, restart: int) -> None:
        for later in range(restart + 1, self.recipe.restarts):
            case = self._case(problem, later)
            self._record(case, self._empty(case, "not needed"))

    def _leave(self, end: End) -> None:
        """Record what is on the device or waits, and what would have come after it."""
        for case in [*self.cases, *self.waiting]:
            for restart in range(case.restart, self.recipe.restarts):
                if (case.problem.id, restart) not in self.records:
                    later = self._case(case.problem, restart)
                    self._record(later, self._empty(later, end))

    def _empty(self, case: _Case, end: End, detail: str | None = None) -> Record:
        return Record(
            id=case.problem.id, restart=case.restart, seed=case.seed, end=end, detail=detail,
            identity=identity_of(case.problem, self.marks, self.recipe, self.slots),
        )  # fmt: skip

    def _record(self, case: _Case, record: Record, vectors: Tensor | None = None) -> None:
        self.records[case.problem.id, case.restart] = record
        if vectors is not None and self.keep:
            empty = torch.full((self.recipe.restarts, *vectors.shape), float("nan"), dtype=vectors.dtype)
            self.vectors.setdefault(case.problem.id, empty)[case.restart] = vectors
