"""The stage `thoughts.probe`: at which layer and position can the entity of each step be read off?"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import torch

from stepwell.analysis.features import MISALIGNED, Features, Labels, columns_of, gathered, rows_of, witnesses
from stepwell.analysis.probing import SCORING_FOLDS, Fold, Probed, make_folds, probed
from stepwell.evaluate import asked
from stepwell.latents.thoughts import Batch, Thoughts
from stepwell.stage import StageContext
from stepwell.studies.thoughts.analysis_params import ProbeParams
from stepwell.studies.thoughts.sets import chosen_layers, trained_arm
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader
from stepwell.tasks.prosqa.text import read_fact

Role = Literal["prompt", "reasoning", "answer"]


@dataclass(frozen=True, kw_only=True)
class Position:
    """A column that means the same in every item.

    Attributes:
        column: counted over the graph's columns and the ids.
    """

    name: str
    role: Role
    column: int


def positions_of(batch: Batch, graph: int) -> tuple[Position, ...]:
    """The last two columns before the thoughts, every thought, and what stands after them.

    Args:
        batch: prompts whose rows are aligned at the first latent.
        graph: columns of a graph before the ids.
    """
    first, end = graph + batch.first, graph + batch.ids.shape[1]
    marked = end > first + batch.thoughts
    before = ["question end, one before", "question end", *(["start marker"] if marked else [])]
    found = [
        Position(name=name, role="prompt", column=column)
        for name, column in zip(before, range(first - len(before), first), strict=True)
        if column >= 0
    ]
    found += [Position(name=f"thought {k + 1}", role="reasoning", column=first + k) for k in range(batch.thoughts)]
    after = range(first + batch.thoughts, end)
    return (*found, *(Position(name="end marker", role="answer", column=column) for column in after))


def entities(reader: Reader, batch: Batch, row: int) -> list[str]:
    """The entities of the gold path after its root, one a step, by the names that this batch gives them.

    Raises:
        TypeError: a reader whose items have no path.
    """
    item = int(batch.items[row])
    if isinstance(reader, SymbolReader):
        assert batch.names is not None
        path = reader.graphs["path"][item, 1 : int(reader.graphs["hops"][item]) + 1]
        return [reader.layout.name(int(batch.names[row, node])) for node in path]
    if isinstance(reader, TextReader):
        return [fact[1] for step in reader.items[item].steps if (fact := read_fact(step)) is not None]
    raise TypeError(f"{type(reader).__name__} has no path to read entities from")


@torch.no_grad()
def gather(
    model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0
) -> tuple[Features, tuple[Position, ...]]:
    """Every layer's states at every position, in the one pass that the arm makes anyway."""
    ids, seen, states, positions = [], [], [], ()
    for rows, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        graph = model.placed(batch)[0].shape[1] - batch.ids.shape[1]
        # Read from the latents' side: questions differ in length from batch to batch, positions do not in number.
        positions = positions_of(batch, graph)
        where = columns_of([p.column for p in positions], len(rows), batch.ids.device)
        with gathered(model.backbone, where) as found:
            model(batch)
        ids += [reader.identity(row)[0] for row in rows.tolist()]
        seen += witnesses(batch)
        states.append(found.tensor.float().cpu())
    return Features(ids=tuple(ids), witness=tuple(seen), states=torch.cat(states)), positions


def labels(
    model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0
) -> tuple[Labels, ...]:
    """For step 1, 2, ...: the entity of each item, None where its path is shorter."""
    paths: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for rows, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        for place, (row, witness) in enumerate(zip(rows.tolist(), witnesses(batch), strict=True)):
            name = reader.identity(row)[0]
            paths[name], seen[name] = entities(reader, batch, place), witness
    longest = max(map(len, paths.values()), default=0)
    return tuple(
        Labels(witness=seen, values={name: path[t] if t < len(path) else None for name, path in paths.items()})
        for t in range(longest)
    )


def probe(params: ProbeParams, ctx: StageContext) -> None:
    """Probe one trained arm on every set; one record a cell, p-values adjusted over its cells of a kind."""
    arm = trained_arm(params, ctx)
    model = arm.built.thoughts
    asking = {"stage": arm.stage, "seed": ctx.seed, "batch_size": params.batch_size, "items": params.items}
    found: list[tuple[dict[str, Any], Probed]] = []
    layers = chosen_layers(params.layers, model.backbone)
    chosen_layers(params.mlp_layers, model.backbone)
    for name, reader in arm.readers():
        features, positions = gather(model, reader, **asking)
        found += _set(params, ctx, name, features, positions, labels(model, reader, **asking), layers)
    _write(ctx, found)


def _set(
    params: ProbeParams, ctx: StageContext, name: str, features: Features, positions: Sequence[Position],
    steps: Sequence[Labels], layers: Sequence[int],
) -> Iterator[tuple[dict[str, Any], Probed]]:  # fmt: skip
    """Every cell of a set, and the records of its folds."""
    n, folds = len(features.ids), ()
    if n >= 2 * params.folds:
        folds = make_folds(n, folds=params.folds, inner=params.inner, seed=ctx.seed % 2**31)
    for number, fold in enumerate(folds):
        ctx.write("fold", set=name, fold=number, used=_named(features, fold.used), scored=_named(features, fold.score))
    cells = list(
        product([t for t in range(len(steps)) if not params.steps or t + 1 in params.steps], layers, positions)
    )
    for done, (t, layer, position) in enumerate(cells):
        rows, known = rows_of(features, steps[t])
        here = [fold.among(rows) for fold in folds]
        x = features.states[torch.from_numpy(rows), layer, positions.index(position)].numpy()
        for kind in params.probes:
            if kind == "mlp" and not _asked_of_mlp(params, t + 1, layer, position.name):
                continue
            cell = {"set": name, "layer": layer, "position": positions.index(position), "step": t + 1, "probe": kind}
            named = {**cell, "position_name": position.name, "role": position.role}
            yield named, _cell(params, ctx, x, known, here, cell)
        ctx.progress(done + 1, len(cells), set=name)
        ctx.stop_if_asked()
    detail = f"{name}: {len(features.ids)} rows joined by item id, each to a label made from the same question"
    ctx.write("check", name=MISALIGNED, passed=True, detail=detail)
    detail = f"{name}: {len(folds)} folds, no item scored by a probe that was fitted or chosen on it"
    ctx.write("check", name=SCORING_FOLDS, passed=True, detail=detail)


def _asked_of_mlp(params: ProbeParams, step: int, layer: int, position: str) -> bool:
    asked = (params.mlp_steps, step), (params.mlp_layers, layer), (params.mlp_positions, position)
    return all(not some or one in some for some, one in asked)


def _named(features: Features, rows: Any) -> list[str]:
    return [features.ids[row] for row in rows]


def _cell(
    params: ProbeParams, ctx: StageContext, x: Any, known: Sequence[str], folds: Sequence[Fold], cell: Mapping[str, Any]
) -> Probed:
    if not folds:
        return Probed(n=len(known), classes=len(set(known)), undefined=f"{len(known)} items for {params.folds} folds")
    permutations = params.permutations if cell["probe"] == "ridge" else params.mlp_permutations
    # Alike at every layer and position: a cell differs from its neighbour by its states alone.
    seed = zlib.crc32(f"{ctx.seed} {cell['set']} {cell['step']}".encode())
    return probed(
        x, known, folds, probe=cell["probe"], permutations=permutations, smallest_class=params.smallest_class, seed=seed
    )


def _write(ctx: StageContext, found: Sequence[tuple[dict[str, Any], Probed]]) -> None:
    """One record a cell, with what can only be said when all cells are known."""
    # Each kind of probe is a family of tests by itself: asking a second kind anywhere costs the first one nothing.
    counts = Counter(place["probe"] for place, cell in found if cell.p_value is not None)
    for place, cell in found:
        p, tested = cell.p_value, counts[place["probe"]]
        alike = [
            (other, result.accuracy) for other, result in found
            if result.accuracy is not None and all(other[k] == place[k] for k in ("set", "layer", "step", "probe"))
        ]  # fmt: skip
        elsewhere = [a for o, a in alike if o["role"] == "reasoning" and o["position"] != place["position"]]
        question = [a for o, a in alike if o["position_name"] == "question end"]
        rounded = {k: round(v, 6) if isinstance(v, float) and k != "p_value" else v for k, v in asdict(cell).items()}
        ctx.write(
            "probe", **place, **rounded,
            accuracy_elsewhere=_mean(elsewhere) if cell.undefined is None else None,
            accuracy_question=_mean(question) if cell.undefined is None else None,
            p_adjusted=None if p is None else min(1.0, p * tested),
            p_adjusted_least=None if p is None else min(1.0, tested / (cell.permutations + 1)),
        )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
