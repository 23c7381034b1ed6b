"""Auto-encoding before stage A: what is learnt, that it stands in the latents, and that stage A goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import contents, records
from tiny_wire import small_items, small_wire, tiny_wire, wire_model

from stepwell.errors import Interrupted, StepwellError
from stepwell.runner import run
from stepwell.stage import StageContext
from stepwell.studies.wire import encoder
from stepwell.studies.wire.encoder import Repeating
from stepwell.studies.wire.kinds import REPEAT_STEP
from stepwell.studies.wire.loop import Moment
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.objective import Rows
from stepwell.studies.wire.params import AutoEncoding

ENCODER, A = "encoder.bytes.3.0", "stage-a.bytes.3.0"
RECIPE = "{steps: 4, batch_size: 3, lr: 1.0e-2, checkpoint_every: 2}"
AUTO = f"encoder.arms.bytes.auto_encoding={{tokens: 12, every: 2, recipe: {RECIPE}}}"
STAGES = ("data", "model", "encoder", "stage-a")
LAST = Moment(step=0, epoch=0.0, epochs=1.0, last=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "run"
    run(tiny_wire(model, AUTO, stages=STAGES), folder)
    return folder


def lesson(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, n: int = 6, **params: Any
) -> tuple[Repeating, list[dict[str, Any]]]:
    """A lesson whose held-out items are `small_items`, and what it writes."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(encoder, "read_split", lambda *args: small_items(n))
    ctx: Any = SimpleNamespace(
        inputs={"data": (SimpleNamespace(folder=None),)}, write=lambda kind, **row: written.append(row)
    )
    given = AutoEncoding.model_validate({"recipe": {"steps": 1}, "tokens": 16} | params)
    return Repeating(wire, given, ctx), written


def test_each_word_is_predicted_from_the_state_before_it_after_an_anchor_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a slow reference in float64, one item and one column at a time, without any of the losses' machinery."""
    wire = small_wire()
    found, _ = lesson(wire, monkeypatch)
    items = small_items(3)
    with torch.no_grad(), wire.speaking():
        (term,) = found.terms(Rows(latent=tuple(items), text=(), number=0), 8, LAST).values()
        tokenizer, backbone, nats = wire.backbone.tokenizer, wire.backbone, []
        for item in items:
            words = tokenizer.encode(f"{item.context}\n{item.question}", add_special_tokens=False)[:16]
            known = [*wire.contract.bos], tokenizer.encode("Repeat: ", add_special_tokens=False)
            bos, anchor = (backbone.embed(torch.tensor([ids], dtype=torch.long)) for ids in known)
            prefix = wire.prefix(wire.latents([item], 8))
            assert isinstance(prefix, torch.Tensor)
            for at, word in enumerate(words):
                before = backbone.embed(torch.tensor([words[:at]], dtype=torch.long))
                embeds = torch.cat((bos, prefix, anchor, before), 1)
                columns = embeds.shape[1]
                hidden = backbone(
                    embeds, positions=torch.arange(columns)[None], mask=torch.ones(1, columns, dtype=torch.bool)
                )
                nats.append(-float(backbone.logits(hidden[:, -1]).double().log_softmax(-1)[0, word]))
    assert term.count == len(nats) == found.counts([Rows(latent=tuple(items), text=(), number=0)], 8)["repeat"]
    assert float(term.sum) == pytest.approx(sum(nats), rel=1e-5)


def test_a_text_that_is_shorter_ends_with_eos(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = small_wire()
    (item,) = small_items(1)
    short, _ = lesson(wire, monkeypatch, tokens=16)
    whole, _ = lesson(wire, monkeypatch, tokens=400)
    words = wire.backbone.tokenizer.encode(f"{item.context}\n{item.question}", add_special_tokens=False)
    assert short.target(item) == tuple(words[:16]) and wire.contract.eos not in short.target(item)
    assert whole.target(item) == (*words, wire.contract.eos)


def test_another_items_prefix_is_as_good_only_where_latents_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = small_wire()
    found, written = lesson(wire, monkeypatch, n=6, tokens=12)
    rows = Rows(latent=tuple(small_items(6)), text=(), number=0)
    parts = [p for part in wire.parts().values() for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parts, lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        with wire.speaking():
            (term,) = found.terms(rows, 8, LAST).values()
        (term.sum / term.count).backward()
        optimizer.step()
    found.after(LAST)
    taught = written.pop()
    assert taught["gain"] == pytest.approx(taught["nats_per_token_other"] - taught["nats_per_token"], rel=0.05)
    assert taught["gain_low"] > 0, "what was learnt stands in the latents"
    # Planted: latents that are drawn anew, whatever was read.
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(wire, "latents", lambda some, vectors=None: torch.randn(len(some), 8, 16, generator=generator))
    found.after(LAST)
    drawn = written.pop()
    assert drawn["gain_low"] < 0 < drawn["gain_high"]
    assert wire.encoder.training, "parts are back in training mode after a look"


def test_its_records_say_what_was_repeated_and_the_model_is_frozen(done: Path) -> None:
    steps = records(done, ENCODER, "step")
    assert [row["step"] for row in steps] == [1, 2, 3, 4] and {row["mode"] for row in steps} == {"encoder"}
    for row in steps:
        assert row.keys() - {"kind", "arm", "seed"} == REPEAT_STEP
        assert row["loss"] == row["loss_repeat"] > 0 and row["weight_repeat"] == 1 and row["text_tokens"] == 12
        assert row["grad_norm_encoder"] > 0 and row["grad_norm_speaker"] is None and not row["skipped"]
    looks = records(done, ENCODER, "restored")
    assert [row["step"] for row in looks] == [2, 4] and {row["n"] for row in looks} == {5}
    assert all(row["tokens"] == 60 and 0 <= row["token_acc"] <= 1 for row in looks)
    assert looks[-1]["nats_per_token"] > 0 and looks[-1]["gain_low"] <= looks[-1]["gain"] <= looks[-1]["gain_high"]
    (outcome,) = records(done, ENCODER, "outcome")
    assert outcome["steps"] == 4 and outcome["nats_per_token"] == looks[-1]["nats_per_token"]
    (check,) = records(done, ENCODER, "check")
    assert check["name"] == "frozen" and check["passed"]
    (one,), (two,) = records(done, ENCODER, "parameters"), records(done, A, "parameters")
    assert one["base"] == two["base"] and one["trainable"] == two["trainable"]


def test_stage_a_goes_on_from_what_was_built(model: Path, done: Path, tmp_path: Path) -> None:
    """Same seed, with auto-encoding and without: stage A begins at other weights, of the same parts."""
    run(tiny_wire(model, stages=STAGES), tmp_path / "run")
    for kind in ("step", "restored", "outcome"):
        assert not records(tmp_path / "run", ENCODER, kind), "nothing is trained where the arm does not ask for it"
    assert len(records(tmp_path / "run", ENCODER, "parameters")) == 1
    manifests = [
        json.loads((folder / "artifacts" / ENCODER / "wire" / "artifact.json").read_text())
        for folder in (done, tmp_path / "run")
    ]
    assert manifests[0]["parts"].keys() == manifests[1]["parts"].keys() and manifests[0] != manifests[1]
    first, plain = (records(folder, A, "step")[0] for folder in (done, tmp_path / "run"))
    assert first["loss"] != plain["loss"] and first["items"] == plain["items"]
    (step,) = [row for row in records(done, ENCODER, "step") if row["step"] == 4]
    assert first["scale"] == pytest.approx(step["scale"], rel=0.05)


def test_a_pre_training_that_stops_and_goes_on_is_the_same_to_the_byte(
    model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[str] = []

    def stop(ctx: StageContext) -> None:
        if ctx.job.id == ENCODER and not stops:
            stops.append(ctx.job.id)
            raise Interrupted("stopped, as asked", "go on", stage=ctx.job.id)

    monkeypatch.setattr(StageContext, "stop_if_asked", stop)
    for _ in range(2):
        run(tiny_wire(model, AUTO, stages=STAGES), tmp_path / "run")
    assert stops == [ENCODER] and contents(tmp_path / "run") == contents(done)


def test_a_text_that_the_model_has_no_positions_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepwellError, match="positions"):
        lesson(small_wire(), monkeypatch, tokens=2000)
