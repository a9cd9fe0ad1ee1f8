import json
import math

import numpy as np
import pytest
import torch

from vit_sae_plugin.activations.embedding_rows import EmbeddingRows, load_embedding_rows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics, fold_statistics
from vit_sae_plugin.activations.embedding_store import EmbeddingStore


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_rows_and_ids_come_back_from_a_file(tmp_path, rows, suffix):
    ids = ["a", "b/c.jpg", "line\nbreak", "back\\slash", "naïve", "", "g"]
    path = EmbeddingRows(rows, ids).save(tmp_path / f"embeddings{suffix}")
    loaded = load_embedding_rows(path, d_in=5)
    assert [loaded.id(row) for row in range(7)] == ids
    assert np.array_equal(loaded.rows, rows)
    assert torch.equal(loaded.tensor(slice(2, 4)), torch.from_numpy(rows[2:4]))
    left_over = {p.name for p in tmp_path.iterdir()} - {path.name, "embeddings.ids.json"}
    assert not left_over


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, rows, suffix, monkeypatch):
    path = EmbeddingRows(rows, list("abcdefg")).save(tmp_path / f"embeddings{suffix}")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(self, path, ids):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(EmbeddingRows, "_write", full_disk)
    with pytest.raises(OSError, match="no space left"):
        EmbeddingRows(rows[:2], ["x", "y"]).save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_plain_npy_file_has_row_numbers_for_ids(tmp_path, rows):
    np.save(tmp_path / "x.npy", rows)
    assert load_embedding_rows(tmp_path / "x.npy").id(3) == "3"


def test_half_precision_files_are_read(tmp_path):
    from safetensors.torch import save_file

    half = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    save_file({"embeds": half}, tmp_path / "x.safetensors")
    loaded = load_embedding_rows(tmp_path / "x.safetensors")
    assert loaded.tensor(slice(None)).tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, x: np.save(p / "x.npy", x), "rows are 5 wide; want 6, the SAE's d_in"),
        (lambda p, x: np.save(p / "x.npy", x[0]), r"want floating-point rows \[n, d\]"),
        (lambda p, x: np.save(p / "x.npy", x[:, [0] * 6].astype(int)), "of int64"),
        (lambda p, x: np.save(p / "x.npy", x[:0, [0] * 6]), "there are no rows"),
        (
            lambda p, x: (
                np.save(p / "x.npy", x[:, [0] * 6]),
                (p / "x.ids.json").write_text(json.dumps(["a"])),
            ),
            "7 rows, but 1 ids",
        ),
    ],
)
def test_each_bad_file_is_one_clear_error(tmp_path, rows, make, message):
    make(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        load_embedding_rows(tmp_path / "x.npy", d_in=6)


def test_a_file_of_several_arrays_must_say_which(tmp_path, rows):
    from safetensors.numpy import save_file

    save_file({"a": rows, "b": rows}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"want a tensor named 'rows', or only one; found \['a'"):
        load_embedding_rows(tmp_path / "x.safetensors")


def test_lists_of_parquet_must_be_of_one_length_and_holes_count_as_not_finite(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="lists of column 'embedding' are not all of one length"):
        load_embedding_rows(tmp_path / "x.parquet")
    table = {"id": ["a", "b"], "embedding": [[1.0, None], [3.0, 4.0]]}
    pq.write_table(pa.table(table), tmp_path / "y.parquet")
    with pytest.warns(UserWarning, match="1 of 2 rows hold NaN"):
        kept = load_embedding_rows(tmp_path / "y.parquet", non_finite="drop")
    assert kept.ids == ["b"]


def test_unknown_formats_and_missing_files_say_so(tmp_path, rows):
    with pytest.raises(ValueError, match=r"read from and written to \.npy, \.safetensors"):
        load_embedding_rows(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="no embeddings at"):
        load_embedding_rows(tmp_path / "x.npy")


def test_rows_that_are_not_finite_are_counted_and_refused_or_dropped(rows):
    rows[2, 1], rows[5, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 7 rows hold NaN .*the first is row 2"):
        EmbeddingRows(rows)
    with pytest.warns(UserWarning, match="2 of 7 rows"):
        kept = EmbeddingRows(rows, non_finite="drop")
    assert kept.n_dropped == 2
    # A row never loses what it stands for, also when its neighbours go.
    assert [kept.id(row) for row in range(len(kept))] == ["0", "1", "3", "4", "6"]
    with pytest.raises(ValueError, match="nothing is left"):
        EmbeddingRows(rows[[2]], non_finite="drop")


def test_statistics_by_hand():
    # Mean (1, 2); centred rows (±3, ±4) have norm 5; √2 / 5.
    statistics = EmbeddingStatistics.from_rows(torch.tensor([[4.0, 6.0], [-2.0, -2.0]]))
    assert statistics.mean.tolist() == [1.0, 2.0]
    assert statistics.scale == pytest.approx(math.sqrt(2) / 5)


def test_standardised_rows_have_mean_norm_sqrt_d_and_are_restored(rows):
    embeddings = EmbeddingRows(rows * 3 + 1)
    statistics = EmbeddingStatistics.from_rows(embeddings.batches(3), "text")
    raw = embeddings.tensor(slice(None))
    standardized = statistics.standardize(raw)
    assert standardized.norm(dim=-1).mean().item() == pytest.approx(math.sqrt(5), rel=1e-5)
    assert torch.allclose(statistics.restore(standardized), raw, atol=1e-5)
    again = EmbeddingStatistics.from_metadata(json.loads(json.dumps(statistics.to_metadata())))
    assert torch.equal(again.mean, statistics.mean)
    assert (again.scale, again.modality, again.n_rows) == (statistics.scale, "text", 7)


def test_statistics_refuse_what_has_none():
    with pytest.raises(ValueError, match="no embeddings"):
        EmbeddingStatistics.from_rows([])
    with pytest.raises(ValueError, match="all 2 embeddings are the same"):
        EmbeddingStatistics.from_rows(torch.ones(2, 3))
    with pytest.raises(ValueError, match="walks the batches twice"):
        EmbeddingStatistics.from_rows(iter([torch.ones(2, 3)]))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_folding_statistics_keeps_the_latents_and_undoes_the_scaling(apply_b_dec_to_input):
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=5, d_sae=9, apply_b_dec_to_input=apply_b_dec_to_input))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    raw = torch.randn(20, 5) * 2 + 3
    statistics = EmbeddingStatistics.from_rows(raw)
    latents = sae.encode(statistics.standardize(raw))
    reconstruction = statistics.restore(sae.decode(latents))
    fold_statistics(sae, statistics)
    assert torch.allclose(sae.encode(raw), latents, atol=1e-4)
    assert torch.allclose(sae(raw), reconstruction, atol=1e-4)


def test_folding_statistics_rescales_the_latents_where_decoder_rows_keep_norm_1():
    from vit_sae_plugin.saes import PatchTrainingSAE, PatchTrainingSAEConfig

    sae = PatchTrainingSAE(PatchTrainingSAEConfig(d_in=5, d_sae=9))
    raw = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 2 + 3
    statistics = EmbeddingStatistics.from_rows(raw)
    latents = sae.encode(statistics.standardize(raw))
    reconstruction = statistics.restore(sae.decode(latents))
    fold_statistics(sae, statistics)
    torch.testing.assert_close(sae.encode(raw), latents / statistics.scale)
    torch.testing.assert_close(sae(raw), reconstruction)


def test_rows_and_their_store_show_their_size():
    rows = EmbeddingRows(np.zeros((1200, 5), np.float32), name="faces")
    assert repr(rows) == "<EmbeddingRows 'faces': 1,200 rows of 5 float32>"
    store = EmbeddingStore(rows, train_batch_size_tokens=64)
    assert repr(store) == f"<EmbeddingStore of {rows!r}: batches of 64, torch.float32>"


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": "x"},
        {"mean": [[1.0]]},
        {"mean": [math.nan]},
        {"scale": 0},
        {"scale": None},
        {"n_rows": []},
        {"mean": None},
    ],
)
def test_statistics_in_metadata_that_are_none_are_told(changes):
    sound = EmbeddingStatistics(torch.zeros(2), 1.5, "image", 3).to_metadata()
    assert EmbeddingStatistics.from_metadata(sound).scale == 1.5
    with pytest.raises(ValueError, match="input_statistics in the SAE's metadata"):
        EmbeddingStatistics.from_metadata({**sound, **changes})
