"""A run of study `wire` as it would leave it, its numbers chosen by hand, for tests of its report and its analysis."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]

HELD, TEST, PER_STEP, VECTORS = 200, 40, 16, 16
TERMS = ("first_token", "teacher_forced", "kd", "text")
CONTRACT = "c" * 64
STEPS = {"stage-a": 100, "stage-b": 160, "sweep": 640, "sampling": 320, "hero": 2000}
NEEDS = {"stage-b": "stage-a", "sweep": "stage-a", "sampling": "stage-b", "hero": "stage-a"}
F1 = {"latent": 0.5, "latent-8bit": 0.45, "zeros": 0.05, "other": 0.1, "mean": 0.05}
BYTES = {"latent": 16384, "latent-8bit": 4128, "zeros": 0, "other": 16384, "mean": 0}
TEXT_F1 = {"text": 0.8, "ceiling": 0.8, "tokens-16": 0.2, "bytes-600": 0.3}
TEXT_BYTES = {"text": 1200, "ceiling": 1200, "tokens-16": 70, "bytes-600": 600}
ANSWERS = ("Ada", "Berlin", "1584", "the end")


def plan(run: Any, arms: Sequence[str] = ("bytes",), seeds: Sequence[int] = (0,), **hero: Any) -> None:
    """plan.yaml with the stages of the shipped plan, resolved."""
    per = {"arm": "arm", "vectors": "vectors", "seed": "seed"}
    stages: list[dict[str, Any]] = [
        {"name": "data", "kind": "qa.data", "params": {"n_train": 8000}},
        {"name": "model", "kind": "qa.model", "needs": ["data"]},
        {"name": "text", "kind": "qa.text", "needs": ["data", "model"]},
        {"name": "stage-a", "kind": "wire.stage-a", "needs": ["data", "model"], "each": per},
    ]
    for name, before in NEEDS.items():
        recipe = {"steps": STEPS[name], "epochs": None, "batch_size": PER_STEP, "accumulation": 1}
        params = {"items": 0, "recipe": {**recipe, **(hero if name == "hero" else {})}}
        needs = ["data", "model", before]
        stages.append({"name": name, "kind": "wire.stage-b", "needs": needs, "each": per, "params": params})
        answer = "answer" if name == "stage-b" else f"answer-{name}"
        needs = ["data", "model", "text", name]
        stages.append({"name": answer, "kind": "wire.answer", "needs": needs, "each": per})
    axes = {"arm": list(arms), "vectors": [VECTORS], "seed": list(seeds)}
    run.plan(study="wire", title="A prompt as a few vectors", axes=axes, stages=stages, gates=[])


def at(arm: str = "bytes", seed: int = 0) -> dict[str, Any]:
    return {"arm": arm, "vectors": VECTORS, "seed": seed}


def job(stage: str, arm: str = "bytes", seed: int = 0) -> str:
    return f"{stage}.{arm}.{VECTORS}.{seed}"


def step(number: int, accuracy: float | None = None, **fields: Any) -> dict[str, Any]:
    """A record of a step; with an accuracy where it was looked at. The commonest token is right in 6%."""
    weighted = {"first_token": 6.0, "teacher_forced": 3.0, "kd": 1.0, "text": None}
    known = accuracy is not None
    return {
        "kind": "step", "step": number, "mode": "b", "items": PER_STEP, "skipped": False, "loss": 10.0 / number,
        "grad_norm": 2.0 + 1 / number, "n": HELD if known else None, "first_acc": accuracy,
        "first_acc_top5": min(1.0, accuracy * 2) if known else None, "majority_acc": 0.06 if known else None,
        **{f"weighted_{term}": value for term, value in weighted.items()}, **fields,
    }  # fmt: skip


def trained(
    stage: str, accuracies: Mapping[int, float], f1: Mapping[int, float], *, axes: Mapping[str, Any], ended: bool = True
) -> Records:
    """The records of one training: a step each tenth of it, looks and answers where they are given."""
    total, mode = STEPS[stage], "a" if stage == "stage-a" else "b"
    records: Records = [{"kind": "parameters", "trainable": 10, "total": 20, "base": "b" * 64, "contract": CONTRACT}]
    told = False
    for number in sorted({*range(total // 10, total + 1, total // 10), *accuracies, *f1}):
        text = {"weighted_text": 5.0} if mode == "b" and number > total / 2 else {}
        records.append(step(number, accuracies.get(number), mode=mode, **text))
        if number in f1:
            best = 1.0 if f1[number] else 0.0
            records.append({"kind": "validation", "step": number, "n": 32, "f1": f1[number], "best_f1": best})
            counts = [HELD - 2 * number // 10 - 10, 2 * number // 10, 10]
            records.append(
                {"kind": "first_tokens", "step": number, "n": HELD, "tokens": [" the", " Ada", "\n"],
                 "counts": [max(0, c) for c in counts], "majority": " the", "gold_tokens": [" Ada", " the", " Berlin"],
                 "gold_counts": [80, 12, 108]}
            )  # fmt: skip
            if best and not told:
                told = True
                message = f"step {number}: the latent arm has its first F1 above 0"
                records.append({"kind": "alert", "monitor": "first-f1", "step": number, "message": message})
    if ended:
        last = accuracies[max(accuracies)]
        records.append({"kind": "outcome", "n": HELD, "final_first_acc": last, "steps": total, "skipped": 0})
    return [{**record, **axes} for record in records]


def item(place: int, condition: str, f1: float, size: int, **axes: Any) -> dict[str, Any]:
    gold = ANSWERS[place % len(ANSWERS)]
    return {
        "kind": "item", "set": "test", "id": f"q{place:03d}", "condition": condition, "question": f"Who is {place}?",
        "answers": [gold], "prediction": gold if f1 > 0.5 else "the the", "em": f1 == 1.0, "f1": f1,
        "first_top1": f1 > 0.5, "first_top5": True, "nll_per_token": 2.0, "nll_tokens": 2, "tokens": 3,
        "error_mode": "" if f1 == 1.0 else "wrong", "bytes": size, **axes,
    }  # fmt: skip


def answered(means: Mapping[str, float], sizes: Mapping[str, int], **axes: Any) -> Records:
    """Items under each condition: the first share of them right, the rest wrong."""
    return [
        item(place, name, float(place < round(mean * TEST)), sizes[name], **axes)
        for name, mean in means.items()
        for place in range(TEST)
    ]


def data(run: Any) -> None:
    sets = {"train": 8000, "held": HELD, "test": TEST}
    rows = [
        {"kind": "dataset", "set": name, "n": n, "sha256": hashlib.sha256(name.encode()).hexdigest(), "source": "squad"}
        for name, n in sets.items()
    ]
    run.job("data", rows, seconds=1)
    shown = "text:   <s>{context} | Answer: | {answer}</s>\nlatent: <s> | {M vectors} | Answer:\nat most 9 tokens"
    run.job("model", [{"kind": "contract", "shown": shown, "model": "tiny", "precision": "fp32", "parameters": 9}])
    run.job("text", answered(TEXT_F1, TEXT_BYTES), seconds=2)


def training(run: Any, stage: str, arm: str = "bytes", seed: int = 0, *, peak: float = 0.3, f1: float = 0.2) -> None:
    """A training that rises to a peak at its middle and falls back a little, with noise of its seed."""
    noise, total = random.Random(f"{stage}{arm}{seed}"), STEPS[stage]
    looks = {total * part // 10: round(HELD * peak * min(part, 10 - part / 2) / 7 * noise.uniform(0.9, 1.0)) / HELD
             for part in range(1, 11)}  # fmt: skip
    answers = {total * part // 4: round(max(0.0, f1 * (part - 1) / 3), 3) for part in range(1, 5)}
    run.job(job(stage, arm, seed), trained(stage, looks, answers, axes=at(arm, seed)), seconds=30)


def whole(run: Any, arms: Sequence[str] = ("bytes", "lm"), seeds: Sequence[int] = (0, 1)) -> Path:
    """Stages A and B, the sweep after it, and what was answered after each."""
    plan(run, arms, seeds)
    run.env()
    data(run)
    for arm in arms:
        for seed in seeds:
            for place, stage in enumerate(("stage-a", "stage-b", "sweep")):
                training(run, stage, arm, seed, peak=0.1 + 0.1 * place, f1=0.15 * place)
            for answering, gain in (("answer", 0.0), ("answer-sweep", 0.1)):
                means = {name: mean + gain * name.startswith("latent") for name, mean in F1.items()}
                run.job(job(answering, arm, seed), answered(means, BYTES, bits=32, **at(arm, seed)), seconds=3)
                run.event("answered", job=job(answering, arm, seed), condition="latent", n=TEST, seconds=4.0)
    return run.path
