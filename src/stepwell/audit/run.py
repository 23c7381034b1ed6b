"""`stepwell audit run`: faults of a run's analyses, each by its name. Pure: records in, findings out.

Each of these faults was made by a real project and changed what it concluded. Most cannot come about where Stepwell's
own stages wrote the records; the audit reads what was written, whoever wrote it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from stepwell.fingerprint import fingerprint

Record = Mapping[str, Any]

CODES: Mapping[str, str] = {
    "wrong-denominator": "a condition counts items it cannot be about, leaves some out, or counts some twice",
    "misaligned-rows": "rows of one id disagree about the item: they were joined by place and not by id",
    "gold-hops": "the number of latents at test time varies between items, which tells the model how far to look",
    "multipass-arm": "an arm that is another arm by construction: the same function, evaluated in another way",
    "target-unreachable": "items whose right answer does not follow from their facts",
    "scoring-folds": "rows that a probe is scored on took part in fitting or choosing it",
    "one-seed-mechanism": "a mechanism is claimed from fewer than three seeds",
    "policy-changed": "the gates are not those that were frozen before the run",
    "p-value-zero": "a p-value that is zero, or smaller than its test can give",
    "null-as-equivalence": "a difference that was not shown is called an equivalence",
}
SEEDS_FOR_A_MECHANISM = 3
# Two runs of one function differ by rounding only; two trained models never agree this well on every item.
SAME_MARGIN = 1e-4
FEWEST_TO_COMPARE = 5
# Rounding turns a tie now and then; rows joined by place disagree in a large share.
MOST_DISAGREEING = 0.05
EVERY_ITEM = frozenset({"zeroed", "averaged", "last-zeroed", "noise-first", "noise-last", "noise-single", "thoughts"})
"""Families of interventions that can be done to every item with enough thoughts."""
P_FIELD = re.compile(r"(^|_)p(_value|_adjusted)?$")
P_ZERO = re.compile(r"\bp\s*(?:=|&lt;|<|≤)\s*0(?:\.0*)?(?![.\d])", re.IGNORECASE)
SCRIPTS = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run left behind, as plain data.

    Args:
        plan: the resolved plan.
        policy: policy.json: the frozen gates, their hash, the overrides.
        records: of all jobs, by job id.
        verdicts: of the gates.
        texts: what was written for readers, by file name.
    """

    plan: Mapping[str, Any]
    policy: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]
    verdicts: Sequence[Record] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Record]:
        """Records of one kind over all jobs, in the order of job ids."""
        return [record for job in sorted(self.records) for record in self.records[job] if record.get("kind") == kind]

    def gates(self) -> dict[str, Mapping[str, Any]]:
        """The frozen gates by name, or the plan's where no policy is left."""
        frozen = self.policy.get("gates") or self.plan.get("gates") or ()
        return {str(gate.get("name")): gate for gate in frozen}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault in a run: its code (see `CODES`), how often it was found, and the first of them."""

    code: str
    count: int
    example: str


def audit_run(run: Evidence, codes: Iterable[str] = tuple(CODES)) -> tuple[Fault, ...]:
    """Every fault of the run's analyses that is among `codes`, in their order; empty for a sound run."""
    found = {code: list(CHECKS[code](run)) for code in codes}
    return tuple(Fault(code=code, count=len(all_), example=all_[0]) for code, all_ in found.items() if all_)


def _by(records: Iterable[Record], *fields: str) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record.get(name) for name in fields)].append(record)
    return groups


def _clean(run: Evidence) -> list[Record]:
    return [record for record in run.of_kind("item") if (record.get("condition") or "clean") == "clean"]


def _wrong_denominator(run: Evidence) -> Iterator[str]:
    interventions = run.of_kind("intervention")
    for group in _by(interventions, "arm", "seed", "set").values():
        has = {r["id"]: r.get("latents") or 0 for r in group if r.get("family") == "clean"}
        for (condition, family), rows in _by(group, "condition", "family").items():
            yield from _condition(f"{_place(rows[0])}, `{condition}`", family, rows, has)
    hops: dict[Any, dict[Any, int]] = defaultdict(dict)
    for record in [*run.of_kind("item"), *interventions]:
        if record.get("hops") is not None:
            hops[record.get("set")][record.get("id")] = record["hops"]
    sizes = {record.get("set"): record.get("n") for record in run.of_kind("dataset")}
    for probe in run.of_kind("probe"):
        known, step = hops.get(probe.get("set"), {}), probe.get("step")
        if step is None or len(known) != sizes.get(probe.get("set")):
            continue
        most = sum(count >= step for count in known.values())
        if (probe.get("n") or 0) > most:
            yield f"probe of {_place(probe)}, step {step}: n {probe['n']}, but {most} items have that step"


def _condition(place: str, family: Any, rows: Sequence[Record], has: Mapping[Any, int]) -> Iterator[str]:
    """One condition of one arm, seed and set against the items of its clean condition and their thoughts."""
    ids = Counter(row.get("id") for row in rows)
    if twice := [name for name, count in ids.items() if count > 1]:
        yield f"{place}: item {twice[0]} counts {ids[twice[0]]} times"
    for row in rows:
        k, latents = row.get("k"), row.get("latents") or 0
        if k is not None and k > latents:
            yield f"{place}: item {row.get('id')} has {latents} thoughts and is counted at k = {k}"
            break
    k = rows[0].get("k") or 0
    can = {name for name, latents in has.items() if latents >= k}
    if has and (strange := [name for name in ids if name not in has]):
        yield f"{place}: {len(strange)} items are not in the clean condition, the first is {strange[0]}"
    elif has and family in EVERY_ITEM and (left := can - ids.keys()):
        yield f"{place}: {len(left)} of the {len(can)} items that have {k or 'any'} thoughts are left out"


def _misaligned_rows(run: Evidence) -> Iterator[str]:
    clean, interventions = _clean(run), run.of_kind("intervention")
    for name in ("hops", "answer"):
        said: dict[Hashable, tuple[Any, Record]] = {}
        for record in [*clean, *interventions]:
            if record.get(name) is None:
                continue
            value, first = said.setdefault((record.get("set"), record.get("id")), (record[name], record))
            if value != record[name]:
                yield (
                    f"item {record.get('id')}: {name} {value} in {_place(first)}, "
                    f"{record[name]} in {_place(record)} ({record['kind']})"
                )
    again = _by((r for r in interventions if r.get("family") == "clean"), "arm", "seed", "set")
    for key, rows in _by(clean, "arm", "seed", "set").items():
        of = {row.get("id"): row.get("forced_correct") for row in rows}
        pairs = [(of[r.get("id")], r.get("forced_correct")) for r in again.get(key, ()) if r.get("id") in of]
        differing = sum(a != b for a, b in pairs)
        if len(pairs) >= FEWEST_TO_COMPARE and differing > MOST_DISAGREEING * len(pairs):
            where = f"{_place(rows[0])}, clean"
            yield f"{where}: evaluation and interventions disagree on {differing} of {len(pairs)} items"


def _gold_hops(run: Evidence) -> Iterator[str]:
    told = [(record, "clean") for record in _clean(run)]
    chosen = [record for record in run.of_kind("intervention") if record.get("family") in ("clean", "thoughts")]
    told += [(record, record.get("condition")) for record in chosen]
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record, number in told:
        if record.get("latents") is not None:
            groups[record.get("arm"), record.get("seed"), number].append(record)
    for rows in groups.values():
        counts = sorted({row["latents"] for row in rows})
        if len(counts) > 1:
            gold = all(row["latents"] == row.get("hops") for row in rows)
            what = "each item its own number of hops" if gold else f"{counts[0]} to {counts[-1]} between items"
            yield f"arm {rows[0].get('arm')}, seed {rows[0].get('seed')}: latents are {what}"


def _multipass_arm(run: Evidence) -> Iterator[str]:
    planned = (run.plan.get("axes") or {}).get("arm") or ()
    for arm in dict.fromkeys([*planned, *(record.get("arm") for record in _clean(run))]):
        if "multipass" in re.sub(r"[^a-z]", "", str(arm).lower()):
            yield f"arm {arm}: without a recycled state, many passes are the same function as one"
    for (seed, name), rows in _by(_clean(run), "seed", "set").items():
        margins = {arm: {r["id"]: r.get("margin") for r in group} for (arm,), group in _by(rows, "arm").items()}
        for one, other in combinations(margins, 2):
            if _same(margins[one], margins[other]):
                n = len(margins[one])
                yield f"arms {one} and {other}, seed {seed}, set {name}: the same margin on each of {n} items"


def _same(one: Mapping[Any, float | None], other: Mapping[Any, float | None]) -> bool:
    if len(one) < FEWEST_TO_COMPARE or one.keys() != other.keys():
        return False
    pairs = [(one[name], other[name]) for name in one]
    if any(a is None or b is None for a, b in pairs) or len({a for a, _ in pairs}) == 1:
        return False
    return all(a is not None and b is not None and abs(a - b) <= SAME_MARGIN for a, b in pairs)


def _target_unreachable(run: Evidence) -> Iterator[str]:
    for record in run.of_kind("audit"):
        if record.get("code") == "target-unreachable" and record.get("count"):
            yield f"set {record.get('set')}: {record['count']} of {record.get('of')} items, {record.get('example', '')}"


def _scoring_folds(run: Evidence) -> Iterator[str]:
    for record in run.of_kind("fold"):
        if both := set(record.get("used") or ()) & set(record.get("scored") or ()):
            yield f"{_place(record)}, fold {record.get('fold')}: {len(both)} items are scored by a probe that saw them"
    for record in run.of_kind("check"):
        if record.get("name") == "scoring-folds" and record.get("passed") is not True:
            yield f"{_place(record)}: {record.get('detail')}"


def _one_seed_mechanism(run: Evidence) -> Iterator[str]:
    gates = run.gates()
    seeds: dict[str, set[Any]] = defaultdict(set)
    for job, records in run.records.items():
        seeds[job.partition(".")[0]] |= {str(record["seed"]) for record in records if record.get("seed") is not None}
    for verdict in run.verdicts:
        criteria = gates.get(str(verdict.get("gate")), {}).get("criteria") or ()
        for criterion, found in zip(criteria, verdict.get("criteria") or (), strict=False):
            count = len(seeds[str(criterion.get("stage"))])
            claimed = criterion.get("claim") == "mechanism" and found.get("decision") in ("go", "no-go")
            if claimed and count < SEEDS_FOR_A_MECHANISM:
                yield f"gate {verdict.get('gate')}: {found.get('decision')} about a mechanism, from {count} seed(s)"


def _policy_changed(run: Evidence) -> Iterator[str]:
    if not run.policy:
        if run.verdicts:
            yield "gates were decided, and no policy.json says what they were before the run"
        return
    if fingerprint(run.policy.get("gates")) != run.policy.get("sha256"):
        yield "policy.json: its sha256 does not match its gates"
    for override in run.policy.get("overrides") or ():
        changes = "; ".join(map(str, override.get("changes") or ()))
        yield f"changed in the open after the run began: {changes} ({override.get('reason')})"
    gates = run.gates()
    for verdict in run.verdicts:
        gate = gates.get(str(verdict.get("gate")))
        if gate is None:
            yield f"gate {verdict.get('gate')} was decided, and is not in policy.json"
            continue
        asked, found = gate.get("criteria") or (), verdict.get("criteria") or ()
        if asked and len(asked) != len(found):
            yield f"gate {verdict['gate']}: {len(found)} criteria were decided, {len(asked)} were frozen"
        for one, other in zip(asked, found, strict=False):
            for name in ("metric", "stage", "comparison", "threshold", "statistic", "mode"):
                if name in one and name in other and one[name] != other[name]:
                    yield f"gate {verdict['gate']}: {name} {other[name]} was decided, {one[name]} was frozen"


def _p_value_zero(run: Evidence) -> Iterator[str]:
    for job in sorted(run.records):
        for record in run.records[job]:
            for name, value in record.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and P_FIELD.search(name):
                    least = 1 / (record["permutations"] + 1) if record.get("permutations") else 0.0
                    if value <= 0 or (name == "p_value" and value < least and not math.isclose(value, least)):
                        yield f"{job}: {name} = {value:g} in a record `{record.get('kind')}`"
    for file, text in run.texts.items():
        for found in P_ZERO.finditer(SCRIPTS.sub("", text)):
            yield f"{file}: “{found.group(0)}”"


def _null_as_equivalence(run: Evidence) -> Iterator[str]:
    gates = run.gates()
    for name, gate in gates.items():
        for decision, route in (gate.get("routes") or {}).items():
            if route == "equivalent":
                yield f"gate {name}: {decision} is routed to `equivalent`"
    for verdict in run.verdicts:
        gate = gates.get(str(verdict.get("gate")), {})
        if verdict.get("route") != "equivalent":
            continue
        bands = [band for band in gate.get("bands") or () if band.get("route") == "equivalent"]
        (found, *_) = verdict.get("criteria") or ({},)
        low, high = found.get("low"), found.get("high")
        inside = [b for b in bands if low is not None and high is not None and b["low"] <= low and high <= b["high"]]
        if not inside:
            yield f"gate {verdict.get('gate')}: no interval within a margin of the plan says so"
        elif (verdict.get("override") or {}).get("changes"):
            yield f"gate {verdict.get('gate')}: the margin was changed after the run began"


def _place(record: Record) -> str:
    """`arm cot, seed 0, set test`, of what the record names."""
    return ", ".join(f"{name} {record[name]}" for name in ("arm", "seed", "set") if record.get(name) is not None)


CHECKS: Mapping[str, Callable[[Evidence], Iterator[str]]] = {
    "wrong-denominator": _wrong_denominator,
    "misaligned-rows": _misaligned_rows,
    "gold-hops": _gold_hops,
    "multipass-arm": _multipass_arm,
    "target-unreachable": _target_unreachable,
    "scoring-folds": _scoring_folds,
    "one-seed-mechanism": _one_seed_mechanism,
    "policy-changed": _policy_changed,
    "p-value-zero": _p_value_zero,
    "null-as-equivalence": _null_as_equivalence,
}
