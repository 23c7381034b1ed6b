"""The numbers of the stages of `imprint` against plain transformers in float64: one row at a time, no cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import records
from tiny_imprint import DOUBLE, FIT, context, tiny_imprint

from stepwell.fitting.noise import mixed, normal, seed_of
from stepwell.fitting.result import Fitted
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.imprint.controls import Row, answered, matched
from stepwell.studies.imprint.fits import VECTORS
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.pairs import examples
from stepwell.studies.imprint.params import PROMPTS
from stepwell.tasks.base import QA

EOS = 256
JOB = "arithmetic.tiny"
Measured = tuple[Plan, Path]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    plan = tiny_imprint(
        "data.tiers.arithmetic.n=3", model=DOUBLE, stages=(*FIT, "check", "controls", "measure"), gates=()
    )
    folder = tmp_path_factory.mktemp("imprint") / "run"
    run(plan, folder)
    return plan, folder


@pytest.fixture(scope="module")
def backbone(done: Measured, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ctx, _ = context(*done, "check", tmp_path_factory.mktemp("model"))
    found, _ = loaded(ctx)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float64}
    return found


@pytest.fixture(scope="module")
def fitted(done: Measured, backbone: Any) -> Fitted:
    return Fitted.load(done[1] / "artifacts" / f"joint.{JOB}" / VECTORS, backbone)


def embedded(backbone: Any, ids: list[int]) -> torch.Tensor:
    """(T, D), from the table itself."""
    return backbone.model.get_input_embeddings().weight.detach()[ids]


def logits(backbone: Any, rows: torch.Tensor) -> torch.Tensor:
    """(T, V) of one row (T, D), by transformers alone."""
    with torch.no_grad():
        return backbone.model(inputs_embeds=rows[None].double(), use_cache=False).logits[0]


def nats_of(backbone: Any, before: torch.Tensor, ids: list[int]) -> float:
    """Mean nats of `ids` after the rows `before`."""
    rows = torch.cat((before, embedded(backbone, ids)))
    found = logits(backbone, rows).log_softmax(-1)[len(before) - 1 : -1]
    return -float(found[range(len(ids)), ids].mean())


def written(backbone: Any, before: torch.Tensor, limit: int) -> tuple[list[int], bool]:
    """Greedily, the whole row anew for each token; and whether the end token came."""
    ids: list[int] = []
    for _ in range(limit):
        token = int(logits(backbone, torch.cat((before, embedded(backbone, ids))))[-1].argmax())
        if token == EOS:
            return ids, True
        ids.append(token)
    return ids, False


def mode_row(backbone: Any, mode: str) -> torch.Tensor:
    """Bytes that no text holds tell a model without words which text it is to write."""
    return embedded(backbone, [{"question": 255, "answer": 254}[mode]])


def test_baselines_are_what_transformers_says(done: Measured, backbone: Any, tmp_path: Path) -> None:
    plan, folder = done
    ctx, _ = context(plan, folder, "baselines", tmp_path)
    seed = int(_environment(folder)["seeds"][f"baselines.{JOB}"])
    items = {item.id: item for item in examples(ctx)}
    table = embedded(backbone, list(range(257)))
    rows = records(folder, f"baselines.{JOB}", "baseline")
    assert len(rows) == 2 * len(items) == 6
    for row in rows:
        item, mode = items[row["id"]], row["mode"]
        ids = [*item.targets()[mode].encode(), EOS]
        first = mode_row(backbone, mode)
        seeds = torch.tensor([seed_of(seed, f"{item.id}/{mode}", draw) for draw in range(2)])
        drawn = table.mean(0) + table.std(0) * normal(seeds, 0, (6, 32)).double()
        random = [nats_of(backbone, torch.cat((first, c)), ids) for c in drawn]
        token = int(mixed(seeds[:1])[0] % 257)
        text = PROMPTS[mode].replace("{question}", item.question).replace("{answer}", item.answers[0])
        wanted = {
            "random": sum(random) / 2,
            "random_low": min(random),
            "random_high": max(random),
            "random_token": nats_of(backbone, torch.cat((first, embedded(backbone, [token]))), ids),
            "nothing": nats_of(backbone, first, ids),
            "text_prompt": nats_of(backbone, embedded(backbone, list(text.encode())), ids),
        }
        context_rows = torch.cat((first, embedded(backbone, list(item.question.encode()))))
        wanted["full_context"] = nats_of(backbone, context_rows, ids) if mode == "answer" else None
        assert row["tokens"] == len(ids)
        assert {key: row[key] for key in wanted} == {
            key: None if value is None else pytest.approx(value, rel=1e-6) for key, value in wanted.items()
        }


def _environment(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "env.json").read_text())


def test_the_spot_check_writes_what_plain_decoding_writes(done: Measured, backbone: Any, fitted: Fitted) -> None:
    _, folder = done
    rows = records(folder, f"check.{JOB}", "spot")
    assert len(rows) == 6
    for row in rows:
        c = fitted.vectors[row["id"]][fitted.best(row["id"]).restart]
        target = list(row["target"].encode())
        before = torch.cat((mode_row(backbone, row["mode"]), c))
        ids, stopped = written(backbone, before, len(target) + 1 + 16)
        assert (row["written"], row["stopped"]) == (bytes(ids).decode(errors="replace"), stopped)
        assert row["exact_decode"] == (ids == target and stopped)
    held = records(folder, f"joint.{JOB}", "target")
    assert [row["exact_decode"] for row in rows] == [target["exact"] for target in held]
    assert {target["exact"] for target in held} == {True, False}


def test_the_numbers_of_a_fit_are_those_of_its_vectors(done: Measured, backbone: Any, fitted: Fitted) -> None:
    for row in records(done[1], f"joint.{JOB}", "restart"):
        (text,) = [r["target"] for r in records(done[1], f"check.{JOB}", "spot")
                   if (r["id"], r["mode"]) == (row["id"], row["mode"])]  # fmt: skip
        before = torch.cat((mode_row(backbone, row["mode"]), fitted.vectors[row["id"]][row["restart"]]))
        assert row["nats"] == pytest.approx(nats_of(backbone, before, [*text.encode(), EOS]), rel=1e-6)


def test_answers_with_padding_are_those_of_each_row_alone(backbone: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    asked = [("2+3=?", "5"), ("what is it, then, after all of this?", "nothing much"), ("a", "bc"), ("why?", "so: ö")]
    rows = []
    for place, (question, answer) in enumerate(asked):
        c = torch.randn(3 * place, 32, generator=generator, dtype=torch.float64)
        embeds = torch.cat((c, embedded(backbone, list(question.encode()))))
        rows.append(Row(item=QA(id=str(place), question=question, answers=(answer,)), pair=None, condition="own",
                        embeds=embeds))  # fmt: skip
    assert len({len(row.embeds) for row in rows}) == 4
    found = answered(backbone, rows, limit=7)
    for row, (nats, text) in zip(rows, found, strict=True):
        assert nats == pytest.approx(nats_of(backbone, row.embeds, list(f" {row.item.answer}".encode())), rel=1e-6)
        ids, _ = written(backbone, row.embeds, 7)
        assert text == bytes(ids).decode(errors="replace").strip().partition("\n")[0]
    (alone,) = answered(backbone, rows[1:2], limit=7)
    assert alone == (pytest.approx(found[1][0], rel=1e-6), found[1][1])


def test_controls_are_other_vectors_before_the_same_target(done: Measured, backbone: Any, fitted: Fitted) -> None:
    _, folder = done
    texts = {(r["id"], r["mode"]): r["target"] for r in records(folder, f"check.{JOB}", "spot")}
    seed = int(_environment(folder)["seeds"][f"controls.{JOB}"])
    best = {id: vectors[fitted.best(id).restart] for id, vectors in fitted.vectors.items()}
    rows = records(folder, f"controls.{JOB}", "control")
    assert len(rows) == 18
    for row in rows:
        id, mode = row["id"], row["mode"]
        assert (row["donor"] is None) == (row["control"] != "shuffled") and row["donor"] != id
        c = {
            "own": best[id],
            "random": matched(best[id], seed_of(seed, id, 0)),
            "shuffled": best.get(row["donor"]),
        }[row["control"]]
        assert c is not None
        target = [*texts[id, mode].encode(), EOS]
        before = torch.cat((mode_row(backbone, mode), c))
        assert row["nats"] == pytest.approx(nats_of(backbone, before, target), rel=1e-6)
        ids, stopped = written(backbone, before, len(target))
        same = [a == b for a, b in zip([*ids, *([EOS] if stopped else [])], target, strict=False)]
        assert row["held"] == (same.index(False) if False in same else len(same))
        assert row["exact"] == (row["held"] == len(target))


def test_bits_and_bytes_by_hand(done: Measured) -> None:
    _, folder = done
    nothing = {(r["id"], r["mode"]): r["nothing"] for r in records(folder, f"baselines.{JOB}", "baseline")}
    targets = {(r["id"], r["mode"]): r for r in records(folder, f"joint.{JOB}", "target")}
    gains = records(folder, f"measure.{JOB}", "gain")
    assert {(r["id"], r["mode"]) for r in gains} == set(targets)
    for row in gains:
        key = row["id"], row["mode"]
        bits = (nothing[key] - targets[key]["nats"]) * targets[key]["tokens"] / math.log(2)
        assert (row["bits"], row["bits_per_slot"], row["bits_per_token"]) == (
            pytest.approx(bits), pytest.approx(bits / 6), pytest.approx(bits / targets[key]["tokens"]),
        )  # fmt: skip
        assert row["why"] == "" and row["tokens"] == targets[key]["tokens"]
    for row in records(folder, f"measure.{JOB}", "storage"):
        tokens = sum(targets[row["id"], mode]["tokens"] - 1 for mode in ("question", "answer"))
        # A token is a byte; 257 of them take 9 bits each, two bytes as whole numbers. Six vectors of 32 numbers.
        assert (row["text_bytes"], row["ids_bytes"], row["packed_bytes"]) == (
            tokens, 2 * tokens, math.ceil(9 * tokens / 8),
        )  # fmt: skip
        assert [row[f"{kind}_bytes"] for kind in ("float32", "bfloat16", "int8", "int4")] == [
            6 * 32 * 4, 6 * 32 * 2, 6 * 32 + 24, 6 * 32 // 2 + 24,
        ]  # fmt: skip


def test_robustness_and_place_of_the_vectors_by_hand(done: Measured, backbone: Any, fitted: Fitted) -> None:
    _, folder = done
    texts = {(r["id"], r["mode"]): r["target"] for r in records(folder, f"check.{JOB}", "spot")}
    found = {kind: records(folder, f"measure.{JOB}", kind) for kind in ("quantised", "line", "geometry", "similarity")}
    ids = list(dict.fromkeys(r["id"] for r in found["quantised"]))
    assert len(ids) == 2

    def nats(id: str, c: torch.Tensor) -> float:
        parts = []
        for mode in ("question", "answer"):
            target = [*texts[id, mode].encode(), EOS]
            before = torch.cat((mode_row(backbone, mode), c))
            parts.append((nats_of(backbone, before, target) * len(target), len(target)))
        return sum(total for total, _ in parts) / sum(count for _, count in parts)

    best = {id: fitted.vectors[id][fitted.best(id).restart] for id in ids}
    for row in found["quantised"]:
        c, most = best[row["id"]], 2 ** (row["bits"] - 1) - 1
        scale = c.abs().max(1, keepdim=True).values / most
        assert row["nats"] == pytest.approx(nats(row["id"], (c / scale).round() * scale), rel=1e-6)
        assert row["change"] == pytest.approx(row["nats"] - nats(row["id"], c), rel=1e-5, abs=1e-6)
    assert [r["id"] for r in found["line"]] == ids
    for row in found["line"]:
        ends = [fitted.vectors[row["id"]][row[end]] for end in ("first", "second")]
        assert {row["first"], row["second"]} == {0, 1} and row["fractions"] == [0.0, 0.5, 1.0]
        wanted = [nats(row["id"], (1 - f) * ends[0] + f * ends[1]) for f in row["fractions"]]
        assert row["nats"] == pytest.approx(wanted, rel=1e-6)
        assert row["barrier"] == pytest.approx(max(0.0, wanted[1] - (wanted[0] + wanted[2]) / 2), rel=1e-5)
    table = embedded(backbone, list(range(257)))
    assert len(found["geometry"]) == 12
    for row in found["geometry"]:
        vector = best[row["id"]][row["slot"]]
        distances = (table - vector).norm(dim=1)
        assert row["distance"] == pytest.approx(float(distances.min()), rel=1e-5)
        token = int(distances.argmin())
        assert row["nearest"] == (bytes([token]).decode(errors="replace") if token < 256 else "")
        assert row["norm"] == pytest.approx(float(vector.norm() / table.norm(dim=1).mean()), rel=1e-5)
    (alike,) = found["similarity"]
    cosine = torch.nn.functional.cosine_similarity(best[alike["id"]], best[alike["other"]], dim=1).mean()
    assert alike["cosine"] == pytest.approx(float(cosine), rel=1e-6)
