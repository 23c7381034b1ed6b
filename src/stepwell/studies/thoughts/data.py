"""The stages `prosqa.data` and `prosqa.audit`: the sets of a study, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from stepwell.audit.data import audit_files
from stepwell.audit.written import audit_written
from stepwell.errors import StepwellError
from stepwell.fingerprint import of_file
from stepwell.stage import StageContext
from stepwell.studies.thoughts.others import asked_about, others_of
from stepwell.studies.thoughts.params import AuditParams, DataParams
from stepwell.tasks.prosqa import (
    GraphArrays,
    Item,
    disjoint_splits,
    generate_graphs,
    load_items,
    pack,
    render,
    write_items,
)
from stepwell.tasks.written import Written, load_written, up_to_spaces, write_written


def make(params: DataParams, ctx: StageContext) -> None:
    """Write every set: graphs as safetensors, and as text in the official format; written items as text alone."""
    if params.format == "steps":
        _make_written(params, ctx)
        return
    for name, family, source, graphs, items in _sets(params, ctx.seed):
        save_file(arrays_of(graphs), str(ctx.folder / f"{name}.safetensors"))
        path = ctx.folder / f"{name}.json"
        write_items(path, items)
        sha = of_file(ctx.folder / f"{name}.safetensors")
        ctx.write(
            "dataset", set=name, n=len(graphs), as_text=len(items), sha256=sha, source=source, family=family,
            format=params.format,
        )  # fmt: skip


def _make_written(params: DataParams, ctx: StageContext) -> None:
    """Files of written items as they are, but that the steering split is taken out of the training file."""
    assert params.train is not None
    train = load_written(params.train)
    steer = _held_out(train, params.n_steer, ctx.seed, params.train)
    asked = {up_to_spaces(item.question) for item in steer}
    sets = {"steer": steer, "train": [item for item in train if up_to_spaces(item.question) not in asked]}
    files = {"official": params.valid, "test": params.test}
    sets |= {name: load_written(path) for name, path in files.items() if path is not None}
    for name, items in sets.items():
        path = ctx.folder / f"{name}.json"
        write_written(path, items)
        ctx.write(
            "dataset", set=name, n=len(items), as_text=len(items), sha256=of_file(path), source="file", family=None,
            format=params.format,
        )  # fmt: skip


def _held_out(items: Sequence[Written], n: int, seed: int, path: Path) -> list[Written]:
    """Items of as many different questions; the same whatever the order of the file."""
    first = {up_to_spaces(item.question): item for item in reversed(items)}
    if len(first) <= n:
        cause = f"{n} items are to steer the curriculum, and the file has {len(first)} questions"
        raise StepwellError(cause, "lower `n_steer`, or name a larger file", path=path)
    order = sorted(first, key=lambda question: hashlib.sha256(f"{seed}\0{question}".encode()).digest())
    return [first[question] for question in order[:n]]


def _sets(params: DataParams, seed: int) -> Iterator[tuple[str, str | None, str, GraphArrays, list[Item]]]:
    files = {"train": params.train, "official": params.valid, "test": params.test}
    wanted = {"steer": params.n_steer, "train": params.n_train, "valid": params.n_valid, "test": params.n_test}
    sizes = {
        name: n for name, n in wanted.items() if n and not files.get(name) and not (name == "valid" and params.valid)
    }
    made = disjoint_splits(params.family, sizes, seed, distinct=[name for name in sizes if name != "train"])
    kept: dict[str, list[Item]] = {}
    for name, graphs in made.items():
        shown = params.audited if name == "train" and params.audited else len(graphs)
        kept[name] = render(graphs[:shown], params.family, seed + sorted(wanted).index(name))
        yield name, params.family, "generated", graphs, kept[name]
    for name, path in files.items():
        if path is not None:
            kept[name] = load_items(path)
            yield name, None, "file", pack(kept[name]), kept[name]
    for family, n in params.families.items():
        graphs = generate_graphs(family, n, seed)
        kept[family] = render(graphs, family, seed)
        yield family, family, "generated", graphs, kept[family]
    for name in params.swapped:
        if name not in kept:
            raise StepwellError(
                f"set `{name}` cannot be swapped: this plan makes {', '.join(kept)}", "name one of them in `swapped`"
            )
        items = [other for item in kept[name] if (other := swapped(item)) is not None]
        yield f"{name}-swapped", None, "generated", pack(items), items


def swapped(item: Item) -> Item | None:
    """The same facts asked about the person who is an ancestor of the wrong option: now that one is right.

    None where no other person leads there.
    """
    children: dict[int, list[int]] = {}
    for parent, child in item.edges:
        children.setdefault(parent, []).append(child)
    paths = [_shortest(children, other, item.neg_target) for other in others_of(item)]
    if not paths:
        return None
    path = min(paths, key=len)
    names = item.idx_to_symbol
    root, target = names[path[0]], names[item.neg_target]
    steps = [
        f"{names[a]} is a {names[b]}." if a == path[0] else f"Every {names[a]} is a {names[b]}."
        for a, b in pairwise(path)
    ]
    return replace(
        item,
        id=f"{item.id}-swapped",
        question=asked_about(item, path[0]),
        answer=f"{root} is a {target}.",
        steps=tuple(steps),
        root=path[0],
        target=item.neg_target,
        neg_target=item.target,
    )


def _shortest(children: dict[int, list[int]], start: int, goal: int) -> list[int]:
    """The nodes from start to goal, which lies below it."""
    paths, seen = [[start]], {start}
    for path in paths:
        if path[-1] == goal:
            return path
        fresh = [child for child in children.get(path[-1], ()) if child not in seen]
        seen.update(fresh)
        paths.extend([*path, child] for child in fresh)
    raise AssertionError(f"no path from {start} to {goal}")


def arrays_of(graphs: GraphArrays) -> dict[str, np.ndarray]:
    """The fields of a set of graphs, as a safetensors file holds them."""
    return {field.name: np.ascontiguousarray(getattr(graphs, field.name)) for field in dataclasses.fields(graphs)}


def load_graphs(folder: Path, name: str) -> GraphArrays:
    """A set that `make` wrote."""
    return GraphArrays(**load_file(str(folder / f"{name}.safetensors")))


def audit(params: AuditParams, ctx: StageContext) -> None:
    """Audit every set, together, so that overlaps between them are seen."""
    (source,) = ctx.inputs["data"]
    sets = list(source.records("dataset"))
    names = [record["set"] for record in sets]
    known_as = [_known_as(record, source.job.params) for record in sets]
    paths = [source.folder / f"{name}.json" for name in names]
    written = any(record["format"] == "steps" for record in sets)
    audits = audit_written(paths) if written else audit_files(paths, known_as)
    for name, found in zip(names, audits, strict=True):
        for finding in found.findings:
            ctx.write(
                "audit", set=name, n=found.n, code=finding.code, count=finding.count, of=finding.of,
                items=list(finding.items[:20]), example=finding.example,
            )  # fmt: skip
        if not found.findings:
            ctx.write("audit", set=name, n=found.n, code="clean", count=0, of=found.n, items=[], example="")
        for score in found.shortcuts:
            by_hops = [list(each) for each in score.by_hops]
            ctx.write("shortcut", set=name, rule=score.rule, correct=score.correct, n=score.n, by_hops=by_hops)
        detail = ", ".join(f"{f.code} {f.count} of {f.of}" for f in found.findings) or "no findings"
        ctx.write("check", name=f"data-{name}", passed=found.ok, detail=f"{found.n} items: {detail}")


def _known_as(record: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What says which hops a set may have: its family, the file that it was copied from, or its own name."""
    path = given.get("valid" if record["set"] == "official" else record["set"]) if record["source"] == "file" else None
    return Path(path).stem if path else record["family"] or record["set"]
