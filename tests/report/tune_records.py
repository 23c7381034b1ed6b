"""A run of study `tune` as it would leave it, its numbers chosen by hand, for tests of its report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imprint_records import section
from scipy.stats import binomtest

from stepwell.report.cells import TO, Cell, Chart, Table
from stepwell.stats import mcnemar_exact, paired_difference, wilson

Records = list[dict[str, Any]]

N, POOL, LAYERS = 40, 30, 4
BENCHMARK, BASE = "problems", "smollm2-135m"
RIGHT = {
    "before": set(range(10)),  # 10
    "after": set(range(4, 26)),  # 22: 16 won, 4 lost
    "after-b": {*range(4, 30)} - {8},  # 25: 1 lost, 4 gained
    "reference": set(range(30)),
}
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
SPEC = {"train": (60, 2.0), "train-b": (20, 0.6)}

OURS = ("results", "versus", "lint", "training", "merge", "mined", "lineage", "browser")


def chart(run: Any, key: str, start: str) -> Chart:
    return next(one for one in section(run, key).charts if one.key.startswith(start))


def line(found: Table, place: int) -> dict[str, Cell]:
    """By the name of the column; where two have one name, the first has its note too."""
    return dict(zip([f"{c.name} {c.note}".strip() for c in found.columns], found.rows[place].cells, strict=True))


def interval(right: int, n: int) -> str:
    ends = binomtest(right, n).proportion_ci(method="wilson")
    return f"{100 * ends.low:.1f}{TO}{100 * ends.high:.1f}"


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def plan(run: Any, seeds: Sequence[int] = (0,), **changes: Any) -> None:
    """plan.yaml with the stages of the shipped plan and a reference, resolved."""
    per = {"seed": "seed"}
    stages: list[dict[str, Any]] = [
        {"name": "data", "kind": "tune.data"},
        {"name": "model", "kind": "tune.model", "params": {"name": BASE}},
        {"name": "lint", "kind": "tune.lint"},
        {"name": "before", "kind": "tune.grade"},
        {"name": "reference", "kind": "tune.reference"},
        {"name": "train", "kind": "tune.train", "each": per},
        {"name": "merge", "kind": "tune.merge", "each": per},
        {"name": "after", "kind": "tune.grade", "each": per},
        {"name": "versus", "kind": "tune.versus", "each": per, "params": {"ours": "after", "theirs": "before"}},
        {"name": "mine", "kind": "tune.mine", "each": per},
        {"name": "correct", "kind": "tune.correct", "each": per},
        {"name": "lint-b", "kind": "tune.lint", "each": per, "params": {"replay": 0.5}},
        {"name": "train-b", "kind": "tune.train", "each": per},
        {"name": "merge-b", "kind": "tune.merge", "each": per},
        {"name": "after-b", "kind": "tune.grade", "each": per},
        {"name": "regress", "kind": "tune.regress", "each": per, "params": {"before": "after", "after": "after-b"}},
    ]
    run.plan(
        **{"study": "tune", "title": "Fine-tune, merge, prove it", "axes": {"seed": list(seeds)}, "stages": stages,
           "gates": [], **changes}
    )  # fmt: skip


def records(kind: str, rows: Iterable[Mapping[str, Any]], **axes: Any) -> Records:
    return [{"kind": kind, **axes, **row} for row in rows]


def item(place: int, right: bool | None, *, split: str = "test", **fields: Any) -> dict[str, Any]:
    status = "silent" if right is None else "right" if right else "wrong"
    wrong = f"Ada has {place} and 2.\nThat makes #### {place + 3}"
    return {
        "benchmark": BENCHMARK if split == "test" else "pool", "category": "maths", "split": split,
        "id": f"{split}-{place:03d}", "sample": 0, "correct": right, "status": status, "partial": None,
        "why": "" if right else f"{place + 3} is not {place + 2}", "stop": "end",
        "question": f"Ada has {place} apples and finds 2. How many has she now?",
        "prediction": f"{place} + 2 = {place + 2}\n#### {place + 2}" if right else wrong,
        "reference": f"{place} + 2 = {place + 2}\n#### {place + 2}", **fields,
    }  # fmt: skip


def result(items: Sequence[Mapping[str, Any]], model: str, **fields: Any) -> dict[str, Any]:
    marks = [one["correct"] for one in items if one["correct"] is not None]
    found = wilson(sum(marks), len(marks))
    cut = sum(one["stop"] == "length" for one in items) / len(items)
    return {
        "benchmark": items[0]["benchmark"], "category": items[0]["category"], "model": model, "n": len(marks),
        "accuracy": found.value, "low": found.low, "high": found.high, "protocol": sha("protocol"),
        "template": sha("template"), "scorer": "final-number/1", "unmarked": len(items) - len(marks), "warning": "",
        "by": "stepwell", "cut": cut, "looping": 0, "stops_warning": "", **fields,
    }  # fmt: skip


def graded(stage: str, model: str, **axes: Any) -> Records:
    items = [item(place, place in RIGHT[stage]) for place in range(N)]
    told: dict[str, Any] = {}
    if stage == "reference":
        items = [{**one, "stop": ""} for one in items]
        told = {"template": "elsewhere", "protocol": sha("other"), "by": None, "cut": None, "looping": None,
                "stops_warning": None}  # fmt: skip
    return records("item", items, **axes) + records("result", [result(items, model, **told)], **axes)


def training(run: Any, stage: str, seed: int, suffix: str, *, alert: bool = False) -> None:
    """A loss that falls, its events, and a held-out loss at each third."""
    steps, first = SPEC[stage]
    second, axes, name = stage == "train-b", {"seed": seed}, f"{stage}{suffix}"
    base = f"merge{suffix}" if second else BASE
    rows = records("training-set", [{
        "n": 24 if second else 192, "left_out": 0 if second else 2, "replayed": 12 if second else 0, "rows": 96,
        "tokens": 16_000, "supervised_tokens": 3_200, "padding_share": 0.05, "steps": steps, "base": base,
        "base_sha256": sha(base), "trainable": 4_884_480,
    }], **axes)  # fmt: skip
    for step in range(2, steps + 1, 2):
        where = {"step": step, "epoch": 1, "curriculum_stage": None}
        lr = 1e-3 * min(step / 4, (steps - step) / steps)
        told = {"loss": first / (1 + step / 8) + 0.02 * seed, "lr": lr, "grad_norm": 1.5 + 1 / step}
        rows += records("step", [{**where, **told}], **axes)
        if step % (steps // 4 * 2) == 0:
            held = {"step": step, "loss": first / (1 + step / 10), "tokens": 200, "right": 120 + step}
            rows += records("held-out", [held], **axes)
            rows += records("validation", [{**where, "accuracy": held["right"] / 200, "n": 200}], **axes)
    if alert:
        rows += records("alert", [{"monitor": "flat-loss", "step": 40, "message": "flat", "stopped": False}], **axes)
    run.job(name, rows, seconds=36)
    for step in (10, 20):
        run.event("throughput", job=name, step=step, tokens_per_second=400.0 + step)
    if not second:
        run.event("red-flag", job=name, monitor="spike", step=12, message="loss 1.9 after a median of 0.9")
        run.event("oom", job=name, step=1, rows=2, pieces=2)
    run.event("trained", job=name, seconds=30.0, tokens=16_000)


def layers(survived: float = 0.6, count: int = LAYERS) -> Records:
    """The deeper the less survives, the last kind of matrix the least."""
    return [
        {"name": f"model.layers.{layer}.{matrix}.weight", "delta_share": 0.002 + 0.001 * place,
         "survived": max(0.0, survived - 0.02 * place - 0.01 * layer)}
        for layer in range(count) for place, matrix in enumerate(MATRICES)
    ]  # fmt: skip


def merged(base: str, base_sha256: str, own: str, **fields: Any) -> dict[str, Any]:
    return {
        "base": base, "base_sha256": base_sha256, "merged_sha256": sha(own), "dtype": "fp32", "verified": True,
        "advice": "good", "reason": "the merged model computes what base and adapter compute", "survived": 0.58,
        "columns": 162, "max_logit_difference": 0.02, "largest_logit": 31.5, "kl_nats": 2e-6, "effect_kl_nats": 0.4,
        "top1_agreement": 1.0, "greedy_agreement": 70 / 72, **fields,
    }  # fmt: skip


def merging(run: Any, stage: str, base: tuple[str, str], own: str, count: int = LAYERS, **axes: Any) -> None:
    texts = [{"prompt": f"Prompt {place}, which is", "text": " a text.", "agreed": 12 - 2 * (place == 0), "tokens": 12}
             for place in range(6)]  # fmt: skip
    rows = records("layer", layers(count=count), **axes) + records("merged", [merged(*base, own)], **axes)
    rows += records("continuation", texts, **axes)
    run.job(own, rows, seconds=4)


def compared(ours: str, theirs: str) -> tuple[Records, dict[str, Any], dict[str, Any]]:
    """The matches of two graded stages, their sum, and the paired gain."""
    matches, counts = [], dict.fromkeys(("win", "tie", "loss", "undecided"), 0)
    for place in range(N):
        mine, other = place in RIGHT[ours], place in RIGHT[theirs]
        outcome = "tie" if mine == other else "win" if mine else "loss"
        both = "both right" if mine else "both wrong"
        why = both if mine == other else f"only {'we are' if mine else 'they are'} right"
        counts[outcome] += 1
        flags = {name: name == outcome for name in counts}
        matches.append({"benchmark": BENCHMARK, "category": "maths", "id": f"test-{place:03d}", "outcome": outcome,
                        "by": "truth", "why": why, **flags, "gained": flags["win"] - flags["loss"]})  # fmt: skip
    shares = {f"{name}_share": count / N for name, count in counts.items()}
    total = {"benchmark": BENCHMARK, "category": "maths", "n": N, **counts, **shares}
    new, old = ([float(place in RIGHT[stage]) for place in range(N)] for stage in (ours, theirs))
    found = paired_difference(new, old)
    gain = {"benchmark": BENCHMARK, "n": N, "difference": found.value, "low": found.low, "high": found.high,
            "p_value": float(mcnemar_exact(counts["win"], counts["loss"])),
            "conclusion": "the first is higher, at the 0.05 level"}  # fmt: skip
    return records("match", matches), total, gain


def versus(run: Any, suffix: str, **axes: Any) -> None:
    matches, total, gain = compared("after", "before")
    rows = [{**one, **axes} for one in matches]
    models = {"ours": f"merge{suffix}", "theirs": BASE}
    rows += records("versus", [{**total, **models}], **axes) + records("gain", [gain], **axes)
    rows += records("check", [{"name": "differs-problems", "passed": True, "detail": "the answers differ"}], **axes)
    tie, win = (wilson(total[outcome], N) for outcome in ("tie", "win"))
    flag = "tie 50% of 40, below 50%"
    for outcome, low, high, found, verdict, needed in (
        ("tie", 0.6, 0.8, tie, "inconclusive", 93), ("win", 0.04, 0.08, win, "above", None),
    ):  # fmt: skip
        share = {"share": found.value, "share_low": found.low, "share_high": found.high}
        row = {"benchmark": BENCHMARK, "outcome": outcome, "low": low, "high": high, "n": N, **share,
               "red_flag": flag if needed else "", "verdict": verdict, "needed": needed}  # fmt: skip
        rows += records("band", [row], **axes)
    flips = wilson(3, 9)
    rows += records("judge", [{
        "benchmark": "letters", "model": "some-judge", "pairs": 10, "unparsed": 1, "flips": flips.value,
        "flips_low": flips.low, "flips_high": flips.high, "took_first": 0.6, "took_longer": 0.75, "length_wins": 7,
        "length_losses": 2,
    }], **axes)  # fmt: skip
    run.job(f"versus{suffix}", rows, seconds=1)


def mining(run: Any, suffix: str, **axes: Any) -> None:
    """Of 30 training problems 12 are right; one failure is contaminated."""
    items = [item(place, place < 12, split="train") for place in range(POOL)]
    rows = records("item", items, **axes) + records("result", [result(items, f"merge{suffix}")], **axes)
    keep = ("id", "category", "question", "prediction", "reference", "why")
    rows += records("failure", [{name: one[name] for name in keep} for one in items[13:]], **axes)
    counts = {"benchmark": "pool", "n": POOL, "failures": POOL - 13, "ties": 0, "contaminated": 1, "without": 0}
    run.job(f"mine{suffix}", rows + records("mined", [counts], **axes), seconds=9)


def correcting(run: Any, suffix: str, **axes: Any) -> None:
    """17 failures answered anew, the first 6 of them right, one of the others cut off."""
    rows = [
        {"id": f"train-{13 + place:03d}", "category": "maths", "right": place < 6, "text": f"Anew: #### {place}",
         "status": "right" if place < 6 else "wrong", "why": "", "stop": "length" if place == 9 else "end",
         "wrong": "before"}
        for place in range(POOL - 13)
    ]  # fmt: skip
    told = records("corrected", [{"n": POOL - 13, "right": 6, "by": "self"}], **axes)
    run.job(f"correct{suffix}", [*records("correction", rows, **axes), *told], seconds=5)


def tasks(run: Any, job: str, **axes: Any) -> None:
    """What a training on tasks adds to its records."""
    kinds = [{"category": name, "n": 64, "rows": 20, "tasks": 10} for name in ("add", "subtract")]
    looks = [{"step": step, "support_before": 2.0 / step, "support_after": 1.5 / step, "query": 1.8 / step,
              "support_tokens": 40, "query_tokens": 40} for step in (2, 4, 6)]  # fmt: skip
    run.lines(f"records/{job}.jsonl", records("category", kinds, **axes) + records("meta", looks, **axes))


def regression(run: Any, suffix: str, **axes: Any) -> None:
    loss, (_, total, gain) = wilson(1, 22), compared("after-b", "after")
    row = {
        "benchmark": BENCHMARK, "right_before": 22, "lost": total["loss"], "gained": total["win"], "left_out": 0,
        "loss": loss.value, "loss_low": loss.low, "loss_high": loss.high, "difference": gain["difference"],
        "difference_low": gain["low"], "difference_high": gain["high"], "n": N, "p_value": gain["p_value"],
        "margin": 0.05, "verdict": "pass", "needed": None,
        "reason": "pass: 1 of 22 items that were right are no longer, 4 are newly right",
    }  # fmt: skip
    kept = {"model": "after-b", "rolled_back": False}
    run.job(f"regress{suffix}", records("regression", [row], **axes) + records("kept", [kept], **axes), seconds=1)


def start(run: Any) -> None:
    """Data, base, linter, and what is graded once."""
    sets = {"train": 192, "held": 16, "pool": 192, f"benchmarks/{BENCHMARK}": N}
    told = {"source": "word-problems", "family": None, "categories": "add 64, subtract 64"}
    rows = [{"set": name, "n": n, "sha256": sha(name), **told} for name, n in sets.items()]
    run.job("data", records("dataset", rows), seconds=1)
    base = {"model": BASE, "sha256": sha(BASE), "dtype": "F32", "quantised": False, "template": sha("template"),
            "stops": "<|im_end|>"}  # fmt: skip
    full = {"name": "full-precision", "passed": True, "detail": "weights are F32"}
    run.job("model", records("base", [base]) + records("check", [full]), seconds=1)
    finding = {"code": "duplicate", "meaning": "an earlier conversation has the same words", "count": 2, "of": 192,
               "example": "train-7: same as train-3: 'Ada has 3 apples'", "allowed": True}  # fmt: skip
    lint = {"name": "lint", "passed": True, "detail": "no fault, or only such as the plan allows"}
    run.job("lint", records("finding", [finding]) + records("check", [lint]), seconds=1)
    run.job("before", graded("before", BASE), seconds=30)
    run.job("reference", graded("reference", "gpt-4"), seconds=3)


def whole(run: Any, seeds: Sequence[int] = (0,), count: int = LAYERS) -> Path:
    """Both trainings, merged, proved, graded, compared and judged, under each seed."""
    plan(run, seeds)
    run.env()
    start(run)
    for seed in seeds:
        tail, at = f".{seed}", {"seed": seed}
        training(run, "train", seed, tail, alert=True)
        merging(run, "merge", (BASE, sha(BASE)), f"merge{tail}", count, **at)
        run.job(f"after{tail}", graded("after", f"merge{tail}", **at), seconds=30)
        versus(run, tail, **at)
        mining(run, tail, **at)
        training(run, "train-b", seed, tail)
        merging(run, "merge-b", (f"merge{tail}", sha(f"merge{tail}")), f"merge-b{tail}", count, **at)
        run.job(f"after-b{tail}", graded("after-b", f"merge-b{tail}", **at), seconds=30)
        regression(run, tail, **at)
    return run.path
