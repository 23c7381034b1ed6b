"""`stepwell audit data`: every fault of ProsQA files with its count, and how far shortcut rules get on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.audit.checks import CODES, Entry, check_entry, hops_asked
from stepwell.tasks.prosqa.canonical import canonical_keys, same_up_to_renaming
from stepwell.tasks.prosqa.items import Item, read_json_list
from stepwell.tasks.prosqa.packing import pack_graphs
from stepwell.tasks.prosqa.shortcuts import RULES, count_rules

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault in one file.

    Attributes:
        code: see `CODES`.
        count: items that have it.
        of: items in the file.
        items: their ids.
        example: what was found in the first of them.
    """

    code: str
    count: int
    of: int
    items: tuple[str, ...]
    example: str


@dataclass(frozen=True, kw_only=True)
class RuleScore:
    """How often a shortcut rule is right, a silent rule counted as half, with a Wilson interval.

    value, low and high are None where no item could be judged (n = 0). `by_hops` has (hops, correct, n), in order.
    """

    rule: str
    value: float | None
    low: float | None
    high: float | None
    correct: float
    n: int
    by_hops: tuple[tuple[int, float, int], ...]


@dataclass(frozen=True, kw_only=True)
class FileAudit:
    """What the audit found in one file; `ok` where it found nothing. Shortcut scores are no findings."""

    file: str
    n: int
    findings: tuple[Finding, ...]
    shortcuts: tuple[RuleScore, ...]

    @property
    def ok(self) -> bool:
        """No findings."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """{file, n, ok, findings: [{code, count, of, items, example}], shortcuts: [{rule, value, low, high, n}]}."""
        return {
            "file": self.file,
            "n": self.n,
            "ok": self.ok,
            "findings": [{**vars(finding), "items": list(finding.items)} for finding in self.findings],
            "shortcuts": [
                {"rule": s.rule, "value": s.value, "low": s.low, "high": s.high, "n": s.n} for s in self.shortcuts
            ],
        }


def audit_files(paths: Sequence[Path | str], names: Sequence[str] | None = None) -> list[FileAudit]:
    """Audit files in the official format, one by one and against each other.

    Everything is judged by the text of the items; graph fields, where there are some, are compared with it. Items of
    two files overlap where their questions are the same word for word, or the same up to the names of their nodes and
    the order of facts and options; the example says which.

    Args:
        paths: the files.
        names: one for each, to say which hops it may have where its own does not: `7hop`, `mini`, `my_9_hops`.

    Raises:
        StepwellError: a file is missing, empty, not JSON, or not a list of objects.
    """
    stems = [Path(path).stem for path in paths] if names is None else names
    files = [_read(Path(path), stem) for path, stem in zip(paths, stems, strict=True)]
    overlaps = _overlaps(files)
    return [_report(str(path), entries, found) for path, entries, found in zip(paths, files, overlaps, strict=True)]


def audit_items(name: str, items: Sequence[Item]) -> FileAudit:
    """Audit items that are already in memory, under a name of their own."""
    entries = [check_entry(item.to_json(), item.id, hops_asked(name)) for item in items]
    return _report(name, entries, {})


def _read(path: Path, name: str) -> list[Entry]:
    asked = hops_asked(name)
    return [check_entry(entry, f"{path.stem}-{place:05d}", asked) for place, entry in enumerate(read_json_list(path))]


def _report(name: str, entries: Sequence[Entry], overlaps: Mapping[str, str]) -> FileAudit:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        for code, example in entry.findings.items():
            found[code][entry.id] = example
    found["duplicate-item"].update(_duplicates(entries))
    found["split-overlap"].update(overlaps)
    findings = tuple(
        Finding(
            code=code,
            count=len(found[code]),
            of=len(entries),
            items=tuple(found[code]),
            example="{}: {}".format(*next(iter(found[code].items()))),
        )
        for code in CODES
        if found.get(code)
    )
    items = [entry.item for entry in entries if entry.item is not None]
    return FileAudit(file=name, n=len(entries), findings=findings, shortcuts=_scores(items))


def _scores(items: Iterable[Item]) -> tuple[RuleScore, ...]:
    from stepwell.stats import wilson  # scipy is loaded where it is needed

    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.hops].append(item)
    counts = {hops: count_rules(group) for hops, group in sorted(groups.items())}
    scores = []
    for place, rule in enumerate(RULES):
        by_hops = tuple((hops, found[place].correct, found[place].n) for hops, found in counts.items())
        correct, n = sum(right for _, right, _ in by_hops), sum(of for _, _, of in by_hops)
        estimate = wilson(correct, n, CONFIDENCE)
        scores.append(
            RuleScore(
                rule=rule, value=estimate.value, low=estimate.low, high=estimate.high, correct=correct, n=n,
                by_hops=by_hops,
            )
        )  # fmt: skip
    return tuple(scores)


def _duplicates(entries: Iterable[Entry]) -> dict[str, str]:
    seen: dict[object, str] = {}
    again: dict[str, str] = {}
    for entry in entries:
        if entry.reading is None:
            continue
        key = (frozenset(entry.reading.facts), entry.reading.root, frozenset(entry.reading.options))
        if key in seen:
            again[entry.id] = f"same as {seen[key]}"
        seen.setdefault(key, entry.id)
    return again


def _overlaps(files: Sequence[Sequence[Entry]]) -> list[dict[str, str]]:
    """For each file: id -> the item of another file that asks the same."""
    found: list[dict[str, str]] = [{} for _ in files]
    if len(files) < 2:
        return found
    items = [(place, entry.item) for place, entries in enumerate(files) for entry in entries if entry.item is not None]
    groups: dict[int, list[tuple[int, Item]]] = defaultdict(list)
    keys = canonical_keys(pack_graphs([item for _, item in items])).tolist() if items else []
    for key, owned in zip(keys, items, strict=True):
        groups[key].append(owned)
    for group in groups.values():
        if len({place for place, _ in group}) > 1:
            _overlap(group, found)
    return found


def _overlap(group: Sequence[tuple[int, Item]], found: list[dict[str, str]]) -> None:
    """Compare items of one key across files, each with the first of another file that it equals."""
    for place, item in group:
        for other_place, other in group:
            if other_place == place:
                continue
            if item.question == other.question:
                found[place][item.id] = f"word for word {other.id}"
                break
            if item.id not in found[place] and same_up_to_renaming(item, other):
                found[place][item.id] = f"{other.id} up to renaming"
                break
