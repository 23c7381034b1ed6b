"""The PCA of token counts is the PCA of the corpus, to the last digit; its controls differ in the subspace alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.latents.compressor import Compressor, token_counts

VOCABULARY, WIDTH, DIMS = 50, 12, 5


def corpus(seed: int = 0, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A table (V, D) in float64 with a large mean, and ids (N,) of which some occur often and some never."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(2.0, 0.1, WIDTH, dtype=torch.float64)
    table = 30 + torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator) * spread
    weights = 1 / torch.arange(1.0, VOCABULARY + 1)
    return table, torch.multinomial(weights, tokens, replacement=True, generator=generator)


def fitted(dims: int = DIMS, seed: int = 0, **options) -> tuple[Compressor, Tensor]:
    """A compressor, and its corpus as vectors (N, D)."""
    table, ids = corpus(seed)
    return Compressor.fit(table, token_counts([ids], VOCABULARY), dims, **options), table[ids]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whiten", [False, True])
def test_equals_scikit_learn_on_the_whole_corpus(seed: int, whiten: bool):
    compressor, vectors = fitted(seed=seed, whiten=whiten)
    theirs = PCA(DIMS, whiten=whiten, svd_solver="full").fit(vectors.numpy())
    assert subspace_angles(compressor.directions.T.numpy(), theirs.components_.T).max() < 1e-7
    np.testing.assert_allclose(compressor.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(compressor.variances, theirs.explained_variance_, rtol=1e-9)
    assert compressor.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-9)
    signs = np.sign((compressor.directions.numpy() * theirs.components_).sum(1))
    np.testing.assert_allclose(compressor.compress(vectors), theirs.transform(vectors.numpy()) * signs, atol=1e-8)
    np.testing.assert_allclose(
        compressor(vectors), theirs.inverse_transform(theirs.transform(vectors.numpy())), atol=1e-8
    )
    assert compressor.tokens == len(vectors) and compressor.distinct == len(vectors.unique(dim=0))


def test_equals_numpy_where_every_direction_is_kept():
    compressor, vectors = fitted(dims=WIDTH)
    centred = vectors.numpy() - vectors.numpy().mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(compressor.variances, singular**2 / (len(vectors) - 1), rtol=1e-9)
    np.testing.assert_allclose(compressor(vectors), vectors, rtol=1e-10)
    assert compressor.explained == pytest.approx(1, abs=1e-12)


def test_one_pass_over_pieces_is_one_over_the_whole():
    _, ids = corpus()
    pieces = [ids[:7], ids[7:7], ids[7:300].tolist(), ids[300:].int().view(2, -1), np.array([], dtype=np.uint16)]
    counts = token_counts(iter(pieces), VOCABULARY)
    assert torch.equal(counts, torch.bincount(ids, minlength=VOCABULARY))
    assert token_counts([], 3).tolist() == [0, 0, 0]


def test_rare_tokens_count_by_how_often_they_occur():
    table = torch.eye(4, dtype=torch.float64)
    often = Compressor.fit(table, torch.tensor([1000, 1000, 1, 1]), 1)
    rarely = Compressor.fit(table, torch.tensor([1, 1, 1000, 1000]), 1)
    assert often.directions[0].abs().argmax() < 2 <= rarely.directions[0].abs().argmax()
    assert often.mean[0] == pytest.approx(1000 / 2002)


@pytest.mark.parametrize("subspace", ["pca", "random", "truncation"])
@pytest.mark.parametrize("whiten", [False, True])
def test_what_every_subspace_has_in_common(subspace, whiten: bool):
    compressor, vectors = fitted(subspace=subspace, whiten=whiten, seed=4)
    torch.testing.assert_close(
        compressor.directions @ compressor.directions.T, torch.eye(DIMS, dtype=torch.float64), atol=1e-12, rtol=0
    )
    compressed = compressor.compress(vectors)
    np.testing.assert_allclose(compressed.var(0), compressor.variances / compressor.scales.square(), rtol=1e-8)
    # The nearest vectors of the affine subspace, by least squares.
    centred = (vectors - vectors.mean(0)).T
    nearest = compressor.directions.T @ torch.linalg.lstsq(compressor.directions.T, centred).solution
    torch.testing.assert_close(compressor(vectors), vectors.mean(0) + nearest.T, atol=1e-9, rtol=0)
    lost = (compressor(vectors) - vectors).square().sum() / (len(vectors) - 1)
    assert compressor.explained is not None
    assert float(lost / compressor.total) == pytest.approx(1 - compressor.explained, abs=1e-10)
    if whiten:
        np.testing.assert_allclose(np.cov(compressed.T.numpy()), np.eye(DIMS), atol=1e-8)
    assert compressor.rms == pytest.approx(float(vectors.square().mean().sqrt()), rel=1e-12)


def test_pca_keeps_more_than_its_controls():
    kept = {kind: fitted(subspace=kind)[0].explained or 0 for kind in ("pca", "random", "truncation")}
    assert kept["pca"] > max(kept["random"], kept["truncation"])


def test_controls_are_what_they_say():
    truncation, vectors = fitted(subspace="truncation")
    torch.testing.assert_close(truncation.compress(vectors), vectors[:, :DIMS] - vectors[:, :DIMS].mean(0))
    torch.testing.assert_close(truncation(vectors)[:, :DIMS], vectors[:, :DIMS])
    torch.testing.assert_close(truncation(vectors)[:, DIMS:], vectors.mean(0)[DIMS:].expand(len(vectors), -1))
    table, ids = corpus()
    counts = token_counts([ids], VOCABULARY)
    first, again, other = (Compressor.fit(table, counts, DIMS, subspace="random", seed=s).directions for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_random_subspaces_are_uniform():
    table, counts = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.ones(9, dtype=torch.int64)
    drawn = [Compressor.fit(table, counts, 2, subspace="random", seed=s).directions for s in range(500)]
    frames = torch.stack(drawn)
    # Of a uniform frame each entry has the mean 0 and the mean square 1 / D.
    assert frames.mean(0).abs().max() < 0.1
    assert (frames.square().mean(0) - 0.25).abs().max() < 0.06


def test_1000_vectors_of_128_numbers_keep_their_shape_at_32():
    vectors = torch.randn(1000, 128, generator=torch.Generator().manual_seed(0))
    compressor = Compressor.fit(vectors, torch.ones(1000, dtype=torch.int64), 32)
    assert compressor.compress(vectors).shape == (1000, 32)
    assert compressor(vectors).shape == vectors.shape
    assert compressor(vectors.view(10, 100, 128)).shape == (10, 100, 128)


@pytest.mark.parametrize(("given", "own"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision(given: torch.dtype, own: torch.dtype):
    table, ids = corpus()
    compressor = Compressor.fit(table.to(given), token_counts([ids], VOCABULARY), DIMS)
    assert compressor.compress(table.bfloat16()).dtype == compressor(table.bfloat16()).dtype == own
    wanted = PCA(DIMS, svd_solver="full").fit(table.to(given).double()[ids].numpy())
    angle = subspace_angles(compressor.directions.double().T.numpy(), wanted.components_.T).max()
    assert angle < 1e-5  # of what bfloat16 made of the table, exactly


def test_gradients_pass():
    compressor, vectors = fitted(whiten=True)
    vectors = vectors[:3].requires_grad_()
    assert torch.autograd.gradcheck(compressor, vectors)
    assert not any(part.requires_grad for part in compressor.state_dict().values())


def test_memory_does_not_grow_with_the_corpus():
    code = """
import resource, torch
from stepwell.latents.compressor import Compressor, token_counts
def fit(pieces):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2000, 32, generator=generator)
    ids = (torch.randint(2000, (10_000,), generator=generator) for _ in range(pieces))
    Compressor.fit(table, token_counts(ids, 2000), 8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(3)
print(fit(3), fit(1000))
"""
    source = Path(__file__).resolve().parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    short, long = (int(kibibytes) for kibibytes in done.stdout.split())
    # 10 million ids are 78,000 KiB as integers, and 1,250,000 KiB as vectors.
    assert long - short < 8_000


def test_save_and_load(tmp_path: Path):
    compressor, vectors = fitted(whiten=True, subspace="random")
    compressor.save(tmp_path / "deep" / "compressor.safetensors")
    loaded = Compressor.load(tmp_path / "deep" / "compressor.safetensors", width=WIDTH)
    assert torch.equal(loaded(vectors), compressor(vectors))
    assert loaded.subspace == "random" and loaded.explained == compressor.explained
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["compressor.safetensors"]


def _without(parts: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: part for key, part in parts.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: _without(parts, "scales"), "this is no compressor: it lacks scales"),
        (lambda parts: parts | {"more": torch.ones(1)}, "this is no compressor: it has more besides"),
        (lambda parts: parts | {"mean": torch.ones(3)}, r"this is no compressor: mean has the shape \(3,\)"),
        (lambda parts: parts | {"directions": torch.ones(3)}, r"its directions are of shape \(3,\)"),
    ],
)
def test_a_file_that_is_no_compressor(tmp_path: Path, change, said: str):
    path = tmp_path / "c.safetensors"
    fitted()[0].save(path)
    save_file(change(load_file(path)), path, metadata={"subspace": "pca"})
    with pytest.raises(StepwellError, match=said) as raised:
        Compressor.load(path)
    assert str(path) in str(raised.value)


def test_other_files(tmp_path: Path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(StepwellError, match="it cannot be read"):
        Compressor.load(path)
    path.write_bytes(b"PK" * 50)
    with pytest.raises(StepwellError, match="it cannot be read"):
        Compressor.load(path)
    fitted()[0].save(path)
    with pytest.raises(StepwellError, match="the compressor is of width 12, and the model's is 16"):
        Compressor.load(path, width=16)
    save_file(load_file(path), path)
    with pytest.raises(StepwellError, match="its subspace is None"):
        Compressor.load(path)


@pytest.mark.parametrize(
    ("dims", "seen", "said"),
    [
        (0, 50, "0 dimensions are asked for, but the embeddings have 12"),
        (13, 50, "13 dimensions are asked for, but the embeddings have 12"),
        (5, 5, "5 dimensions are asked for, but 5 distinct tokens were seen"),
        (1, 1, "fit on a corpus of two distinct tokens at least"),
        (5, 0, "the corpus is empty"),
    ],
)
def test_impossible_dimensions(dims: int, seen: int, said: str):
    table, _ = corpus()
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    counts[:seen] = 3
    with pytest.raises(StepwellError, match=said):
        Compressor.fit(table, counts, dims)


def test_as_many_dimensions_as_the_distinct_tokens_allow():
    table, _ = corpus()
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    counts[:6] = torch.arange(1, 7)
    compressor = Compressor.fit(table, counts, 5, whiten=True)
    torch.testing.assert_close(compressor(table[:6]), table[:6])
    assert compressor.explained == pytest.approx(1)


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        ([1, 50], "piece 1 of the corpus has the unknown id 50; the embedding table has 50 rows"),
        ([3, -100], "piece 1 of the corpus has the unknown id -100"),
        ([0.5], r"piece 1 of the corpus holds torch.float32"),
        ([True], r"piece 1 of the corpus holds torch.bool"),
    ],
)
def test_unknown_ids(piece: list, said: str):
    with pytest.raises(StepwellError, match=said):
        token_counts([[1, 2], piece], VOCABULARY)


def test_what_does_not_fit_together():
    table, ids = corpus()
    counts = token_counts([ids], VOCABULARY)
    with pytest.raises(StepwellError, match=r"the counts are of \(49,\) ids, and the embedding table has 50 rows"):
        Compressor.fit(table, counts[:-1], DIMS)
    with pytest.raises(StepwellError, match="a count is negative"):
        Compressor.fit(table, -counts, DIMS)
    compressor = Compressor.fit(table, counts, DIMS)
    with pytest.raises(StepwellError, match="vectors have 11 numbers, and this compressor takes 12 to 5"):
        compressor.compress(table[:, 1:])
    with pytest.raises(StepwellError, match="compressed vectors have 12 numbers"):
        compressor.restore(table)


def test_an_embedding_that_is_not_finite_matters_only_where_it_is_seen():
    table, ids = corpus()
    counts = token_counts([ids], VOCABULARY)
    unseen = int((counts == 0).nonzero()[0])
    clean = Compressor.fit(table, counts, DIMS)
    table[unseen] = float("nan")
    assert torch.equal(Compressor.fit(table, counts, DIMS).directions, clean.directions)
    table[ids[0]] = float("nan")
    with pytest.raises(StepwellError, match="an embedding of the corpus is not finite"):
        Compressor.fit(table, counts, DIMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_without_variance_cannot_be_whitened(dtype: torch.dtype):
    table, ids = corpus()
    table = table.to(dtype)
    table[:, 4:] = table[:, :4].sum(1, keepdim=True)
    counts = token_counts([ids], VOCABULARY)
    plain = Compressor.fit(table, counts, DIMS)
    torch.testing.assert_close(plain(table), table)
    with pytest.raises(StepwellError, match="do not vary along 1 of the 5 directions") as raised:
        Compressor.fit(table, counts, DIMS, whiten=True)
    assert raised.value.way_out == "ask for 4 dimensions, or do not whiten"
    assert Compressor.fit(table, counts, 4, whiten=True).explained == pytest.approx(1)


def test_vectors_that_never_vary_have_no_share():
    compressor = Compressor.fit(torch.ones(4, 3), torch.ones(4, dtype=torch.int64), 1)
    assert compressor.explained is None
    torch.testing.assert_close(compressor(torch.ones(2, 3)), torch.ones(2, 3))
