"""Restorers: shapes, the start at the PCA optimum, RMS matching; and measures of reconstruction, against loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.latents.compressor import Compressor, token_counts
from stepwell.latents.restorer import Restorer, reconstruction, rms_of, scaled_to
from stepwell.latents.restorer_specs import RestorerParams

VOCABULARY, WIDTH, DIMS = 40, 10, 4
ADAPTERS = ("pca", "linear", "mlp", "residual")


def embeddings(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A table (V, D) of small entries in float64, and how often each token occurs, some never."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(2.0, 0.3, WIDTH, dtype=torch.float64)
    table = 0.01 * (0.5 + torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator) * spread)
    return table, token_counts([torch.randint(30, (500,), generator=generator)], VOCABULARY)


def restorer(adapter: Any = "residual", *, whiten: bool = False, **options: Any) -> Restorer:
    table, counts = embeddings()
    compressor = Compressor.fit(table, counts, DIMS, whiten=whiten)
    return Restorer(compressor, RestorerParams(adapter=adapter, **options))


@pytest.mark.parametrize("whiten", [False, True])
def test_residual_starts_exactly_at_the_pca_optimum(whiten: bool):
    table, _ = embeddings()
    made = restorer(whiten=whiten, hidden=7)
    assert torch.equal(made(table), made.compressor(table))
    assert torch.equal(restorer("pca", whiten=whiten)(table), made.compressor(table))
    made(table).square().sum().backward()
    assert made.net is not None and any(p.grad.abs().sum() > 0 for p in made.net.parameters() if p.grad is not None)


@pytest.mark.parametrize("adapter", ["linear", "mlp"])
def test_the_scale_of_the_table_need_not_be_learnt(adapter: Any):
    table, _ = embeddings()
    untrained = restorer(adapter)
    assert 0.1 < float(rms_of(untrained(table).detach()).mean() / rms_of(table).mean()) < 10
    whitened = restorer(adapter, whiten=True)
    torch.testing.assert_close(untrained(table), whitened(table))


@pytest.fixture(scope="module")
def wide() -> Compressor:
    """512 of 4096 dimensions, made by hand: the covariance of 4096 takes seconds."""
    parts = {"mean": torch.zeros(4096), "directions": torch.eye(4096)[:512], "total": torch.tensor(4096.0)}
    parts |= {"scales": torch.ones(512), "variances": torch.ones(512), "tokens": torch.tensor(9)}
    return Compressor("truncation", parts | {"distinct": torch.tensor(9)})


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_8_by_20_by_512_becomes_8_by_20_by_4096(wide: Compressor, adapter):
    made = Restorer(wide, RestorerParams(adapter=adapter, hidden=64 if adapter in ("mlp", "residual") else None))
    with torch.no_grad():
        assert made.decode(torch.randn(8, 20, 512)).shape == (8, 20, 4096)


def test_hidden_layers_are_as_wide_as_the_model_unless_told():
    made = restorer("mlp")
    assert made.net is not None
    assert [tuple(p.shape) for p in made.net.parameters() if p.dim() == 2] == [(10, 4), (10, 10), (10, 10)]


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (restorer("mlp", seed=seed).state_dict()["net.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.dtype == torch.float64


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rms_of_each_token_travels_and_is_matched(adapter: Any):
    table, _ = embeddings()
    made = restorer(adapter, rms="token")
    sent = made.encode(table)
    assert sent.shape[-1] == made.numbers_per_token == DIMS + 1
    torch.testing.assert_close(rms_of(made.decode(sent)), rms_of(table))
    free = restorer(adapter)
    assert free.numbers_per_token == free.encode(table).shape[-1] == DIMS
    cosine = torch.nn.functional.cosine_similarity(made(table), free(table))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_rms_of_the_corpus_is_matched_without_sending_anything():
    table, counts = embeddings()
    made = restorer(rms="corpus")
    assert made.numbers_per_token == DIMS
    wanted = (table.square().mean(1) @ counts.double() / counts.sum()).sqrt()
    torch.testing.assert_close(rms_of(made(table)), wanted.expand(VOCABULARY, 1))


def test_a_vector_of_zeros_stays_and_has_a_gradient():
    vectors = torch.zeros(2, 3, dtype=torch.float64)
    vectors[1] = torch.tensor([1.0, -2.0, 2.0])
    vectors.requires_grad_()
    scaled = scaled_to(vectors, torch.tensor([[5.0], [5.0]], dtype=torch.float64))
    assert scaled[0].tolist() == [0, 0, 0]
    assert float(rms_of(scaled[1]).detach()) == pytest.approx(5)
    scaled.sum().backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all()


def test_another_number_of_numbers_is_refused():
    with pytest.raises(StepwellError, match="4 numbers a token arrive, and this restorer reads 5"):
        restorer(rms="token").decode(torch.zeros(2, 4))


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        RestorerParams(adaptor="mlp")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_save_and_load(tmp_path: Path, adapter: Any):
    table, _ = embeddings()
    made = restorer(adapter, rms="token", whiten=True, hidden=6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1
    made.save(tmp_path / "restorer.safetensors")
    loaded = Restorer.load(tmp_path / "restorer.safetensors")
    assert torch.equal(loaded(table), made(table)) and loaded.params == made.params
    assert loaded.compressor.subspace == "pca"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("net.0.bias"), "this is no restorer: .*Missing key.*net.0.bias"),
        (lambda held: held.update(more=torch.ones(1)), "this is no restorer: .*Unexpected key.*more"),
        (lambda held: held.pop("compressor.mean"), "this is no compressor: it lacks mean"),
    ],
)
def test_a_file_with_a_part_too_few_or_too_many(tmp_path: Path, change, said: str):
    path, made = tmp_path / "restorer.safetensors", restorer("mlp")
    made.save(path)
    held = load_file(path)
    change(held)
    about = {"subspace": "pca", "params": made.params.model_dump(mode="json")}
    save_file(held, path, metadata={"restorer": json.dumps(about)})
    with pytest.raises(StepwellError, match=f"(?s){said}"):
        Restorer.load(path)
    save_file(load_file(path), path, metadata={"restorer": json.dumps({"subspace": "pca"})})
    with pytest.raises(StepwellError, match="this is no"):
        Restorer.load(path)


def slowly(restored: Tensor, original: Tensor, tokens: Tensor) -> dict[str, tuple[float, int]]:
    """Each measure's sum and count, one token at a time."""
    found = {name: [0.0, 0] for name in ("mse", "cosine", "relative_error", "norm_ratio")}
    flat = zip(
        restored.flatten(0, -2).tolist(), original.flatten(0, -2).tolist(), tokens.flatten().tolist(), strict=True
    )
    for there, here, times in flat:
        for _ in range(int(times)):
            error = sum((a - b) ** 2 for a, b in zip(there, here, strict=True))
            norm, other = math.hypot(*here), math.hypot(*there)
            values = {"mse": error / len(here)}
            if norm:
                values |= {"relative_error": math.sqrt(error) / norm, "norm_ratio": other / norm}
            if norm and other:
                values["cosine"] = sum(a * b for a, b in zip(there, here, strict=True)) / (norm * other)
            for name, value in values.items():
                found[name][0] += value
                found[name][1] += 1
    return {name: (total, int(count)) for name, (total, count) in found.items()}


def assert_same(measured, wanted: dict[str, tuple[float, int]]) -> None:
    for name, (total, count) in wanted.items():
        assert getattr(measured, name).sum == pytest.approx(total, rel=1e-10), name
        assert getattr(measured, name).count == count, name


@pytest.mark.parametrize("seed", range(3))
def test_measures_over_real_tokens_only(seed: int):
    generator = torch.Generator().manual_seed(seed)
    original, restored = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.6
    original[0, 0], restored[0, 1], mask[0, :2] = 0, 0, True
    wanted = slowly(restored, original, mask)
    assert wanted["mse"][1] == int(mask.sum()) == wanted["norm_ratio"][1] + 1 == wanted["cosine"][1] + 2
    assert_same(reconstruction(restored, original, mask), wanted)
    original[~mask], restored[~mask] = float("nan"), float("inf")  # padding may hold anything
    assert_same(reconstruction(restored, original, mask), wanted)


def test_padding_counted_as_tokens_would_change_the_measures():
    original = torch.zeros(2, 4, 3)
    original[:, :2] = 1.0
    mask = original[..., 0] > 0
    real = reconstruction(original, original, mask).means()
    assert real == {"mse": 0, "cosine": pytest.approx(1), "relative_error": 0, "norm_ratio": 1}
    half = reconstruction(0.5 * original, original, torch.ones(2, 4, dtype=torch.bool))
    assert half.mse.mean == pytest.approx(0.125)
    assert reconstruction(0.5 * original, original, mask).mse.mean == pytest.approx(0.25)


def test_counts_give_the_measures_of_the_whole_corpus():
    table, counts = embeddings()
    made = restorer("pca")
    by_counts = reconstruction(made(table), table, counts)
    corpus = table.repeat_interleave(counts, 0)
    assert_same(by_counts, slowly(made(corpus), corpus, torch.ones(len(corpus))))
    compressor = made.compressor
    assert compressor.explained is not None and by_counts.mse.mean is not None
    lost = (1 - compressor.explained) * float(compressor.total) * (len(corpus) - 1) / len(corpus) / WIDTH
    assert by_counts.mse.mean == pytest.approx(lost, rel=1e-9)


def test_sums_and_counts_add_over_batches():
    original, restored = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) != 3
    whole = reconstruction(restored, original, mask)
    parts = [reconstruction(restored[s], original[s], mask[s]) for s in (slice(0, 4), slice(4, 5), slice(5, 9))]
    assert_same(parts[0] + parts[1] + parts[2], slowly(restored.double(), original.double(), mask))
    assert (parts[0] + parts[1] + parts[2]).means() == pytest.approx(whole.means())


def test_undefined_is_never_zero():
    nothing = reconstruction(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, dtype=torch.bool))
    assert nothing.means() == {"mse": None, "cosine": None, "relative_error": None, "norm_ratio": None}
    zeros = reconstruction(torch.ones(1, 3), torch.zeros(1, 3), torch.ones(1))
    assert zeros.means() == {"mse": pytest.approx(1), "cosine": None, "relative_error": None, "norm_ratio": None}


def test_a_real_token_that_is_not_finite_shows():
    restored = torch.ones(2, 3)
    restored[1, 0] = float("nan")
    measured = reconstruction(restored, torch.ones(2, 3), torch.ones(2, dtype=torch.bool))
    assert all(value is not None and math.isnan(value) for value in measured.means().values())


def test_shapes_that_do_not_fit_together():
    with pytest.raises(StepwellError, match=r"restored \(2, 3\), original \(2, 3\) and tokens \(3,\) do not fit"):
        reconstruction(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))


def test_equal_restorers_are_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        restorer("mlp").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
