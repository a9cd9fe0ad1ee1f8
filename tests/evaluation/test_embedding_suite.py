"""evaluate_embeddings on SAELens SAEs: statistics, modalities, recovery over k, histograms."""

import math

import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram
from vit_sae_plugin.attached_sae import RowCoder, keep_top_k
from vit_sae_plugin.evaluation import EvaluationReport, evaluate_embeddings, fit_linear_probe
from vit_sae_plugin.evaluation.embedding_suite import default_k_list
from vit_sae_plugin.evaluation.histogram_table import histogram_table
from vit_sae_plugin.evaluation.row_sample import RowSample
from vit_sae_plugin.saes.matryoshka_topk import MatryoshkaTopKSAE, MatryoshkaTopKSAEConfig


def pair_sae(d_in=8, **kwargs):
    """Latent 2i reads feature i's positive part, latent 2i + 1 its negative part: x̂ = x."""
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, **kwargs))
    directions = torch.stack([torch.eye(d_in), -torch.eye(d_in)], dim=1).flatten(0, 1)
    sae.W_dec.data, sae.W_enc.data = directions.clone(), directions.T.clone()
    sae.b_enc.data.zero_()
    return sae


@pytest.fixture
def rows():
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + 0.5


def test_a_perfect_sae_scores_perfectly(rows):
    table = evaluate_embeddings(pair_sae(), rows).embeddings.loc["image"]
    assert table["n_rows"] == 64
    assert table["l0"] == 8
    assert table["zero_fraction"] == 0.5
    assert table["n_dead"] == 0
    assert table[["fvu_per_sample", "fvu", "nmae", "nmse", "euclidean"]].to_list() == [0] * 5
    assert table["cosine_similarity"] == pytest.approx(1, abs=1e-6)
    for name in ("raw", "unit"):
        assert table[f"cknna_reconstruction_{name}"] == pytest.approx(1, abs=1e-6)
    # each row is opposite to one other: 16 of 16² products are (−1)² = 1
    assert table["decoder_orthogonality"] == pytest.approx(16 / 16**2)


def test_progressive_recovery_gets_better_with_k_and_equals_the_sae_at_the_end(rows):
    report = evaluate_embeddings(pair_sae(), rows, k_list=[1, 2, 4, 8, 16])
    table = report.progressive_recovery.loc["image"]
    assert table["l0"].to_list() == [1, 2, 4, 8, 8]
    assert table["fvu"].is_monotonic_decreasing
    assert table["fvu"].iloc[0] > 0.3
    assert table["cosine_similarity"].is_monotonic_increasing
    own = report.embeddings.loc["image"]
    assert table.loc[16].to_dict() == pytest.approx(own[table.columns].to_dict())


def test_an_encode_that_takes_k_is_asked_for_k(rows):
    class NestedSAE(StandardSAE):
        def encode(self, x, k=None):
            latents = super().encode(x)
            return latents if k is None else keep_top_k(latents, k) * 3

    nested = NestedSAE(StandardSAEConfig(d_in=8, d_sae=16))
    assert torch.equal(RowCoder(nested).encode(rows, k=2), nested.encode(rows, k=2))


def test_keep_top_k_keeps_signs():
    latents = torch.tensor([[-3.0, 1.0, 2.0, 0.0]])
    assert keep_top_k(latents, 2).tolist() == [[-3, 0, 2, 0]]
    assert keep_top_k(latents, 4) is latents
    with pytest.raises(ValueError, match="k is 0; want 1"):
        keep_top_k(latents, 0)


def test_metrics_are_in_the_models_space_and_use_training_statistics(rows):
    statistics = EmbeddingStatistics(mean=torch.arange(8.0), scale=4.0)
    sae = pair_sae()
    sae.b_enc.data.fill_(-0.1)  # so that x̂ differs from x
    own = evaluate_embeddings(sae, rows, statistics=statistics).embeddings.loc["image"]
    with torch.no_grad():
        x_hat = sae((rows - statistics.mean) * 4.0) / 4.0 + statistics.mean
    assert own["euclidean"] == pytest.approx((rows - x_hat).norm(dim=-1).mean().item(), rel=1e-5)
    assert own["nmse"] == pytest.approx(
        ((rows - x_hat).square().sum(-1) / rows.square().sum(-1)).mean().item(), rel=1e-5
    )

    sae.cfg.metadata.input_statistics = statistics.to_metadata()
    from_metadata = evaluate_embeddings(sae, rows).embeddings.loc["image"]
    pd.testing.assert_series_equal(from_metadata, own)
    # the rows' own mean plays no part: one row alone gives the same latents
    coder = RowCoder(sae)
    torch.testing.assert_close(coder.encode(rows[:1]), coder.encode(rows)[:1])


def test_a_second_modality_needs_its_own_statistics(rows):
    statistics = EmbeddingStatistics.from_rows(rows)
    sae = pair_sae()
    sae.cfg.metadata.input_statistics = statistics.to_metadata()
    texts = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)) - 2
    with pytest.raises(ValueError, match="no statistics of 'text' rows are known"):
        evaluate_embeddings(sae, {"image": rows, "text": texts})
    report = evaluate_embeddings(
        sae,
        {"image": rows, "text": texts},
        statistics={"text": EmbeddingStatistics.from_rows(texts, "text")},
        k_list=[2],
    )
    assert report.embeddings.index.to_list() == ["image", "text"]
    assert report.embeddings["n_rows"].to_list() == [64, 40]
    assert report.progressive_recovery.index.to_list() == [("image", 2), ("text", 2)]
    assert report.embeddings.loc["text", "fvu"] == pytest.approx(0, abs=1e-6)


def test_an_sae_of_captions_measures_captions_by_their_own_statistics(rows):
    sae = pair_sae()
    statistics = EmbeddingStatistics.from_rows(rows + 7, "text")
    sae.cfg.metadata.input_statistics = statistics.to_metadata()
    report = evaluate_embeddings(sae, rows, k_list=[4])
    assert report.embeddings.index.to_list() == ["text"]
    assert report.progressive_recovery.index.to_list() == [("text", 4)]
    told = evaluate_embeddings(sae, {"text": rows}, statistics=statistics, k_list=[4])
    pd.testing.assert_frame_equal(report.embeddings, told.embeddings)
    with pytest.raises(ValueError, match="no statistics of 'image' rows are known"):
        evaluate_embeddings(sae, {"image": rows})


def test_input_scaling_of_a_checkpoint_is_undone(rows):
    sae = pair_sae()
    sae.b_enc.data.fill_(-0.1)
    plain = RowCoder(sae)
    sae.cfg.metadata.input_scaling = 2.0
    scaled = RowCoder(sae)
    torch.testing.assert_close(scaled.encode(rows), plain.encode(2 * rows))
    torch.testing.assert_close(
        scaled.decode(scaled.encode(rows)), plain.decode(plain.encode(2 * rows)) / 2
    )


def test_hook_z_reshaping_of_saelens_is_undone(rows):
    sae = pair_sae(reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    coder = RowCoder(sae, d_head=2)
    torch.testing.assert_close(coder.decode(coder.encode(rows)), rows)
    with pytest.raises(ValueError, match="d_head"):
        RowCoder(sae)


@pytest.mark.parametrize("batch_size_rows", [5, 64])
def test_batches_do_not_change_the_result(rows, batch_size_rows):
    settings = {"k_list": [2, 16], "n_cknna": 20}
    whole = evaluate_embeddings(pair_sae(), rows, **settings)
    rows_with_ids = EmbeddingRows(rows.numpy())
    for parts in (rows_with_ids, [rows[:10], rows[10:]], iter([rows[:63], rows[63:]])):
        other = evaluate_embeddings(pair_sae(), parts, batch_size_rows=batch_size_rows, **settings)
        for name, table in whole.tables.items():
            pd.testing.assert_frame_equal(other.tables[name], table, rtol=1e-4, atol=1e-6)


def test_top_k_sae_works_and_its_sparse_latents_too(rows):
    sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=3))
    report = evaluate_embeddings(sae, rows, k_list=[2, 16])
    assert report.embeddings.loc["image", "l0"] <= 3
    assert report.progressive_recovery.loc[("image", 16), "l0"] <= 3
    latents = sae.encode(rows).detach()
    sae.encode = lambda x: latents.to_sparse()
    assert torch.equal(RowCoder(sae).encode(rows), latents)


def test_probe_agreement_and_divergence():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    train = torch.eye(8)[labels] * 5 + torch.randn(90, 8, generator=generator)
    probe = fit_linear_probe(train, labels)
    assert probe.accuracy(train, labels) > 0.95
    # the probe sees directions only
    torch.testing.assert_close(probe(train * 7), probe(train))

    perfect = evaluate_embeddings(pair_sae(), train, probe=probe).embeddings.loc["image"]
    assert perfect["probe_agreement"] == 1
    assert perfect["probe_kl"] == pytest.approx(0, abs=1e-6)
    mirrored = pair_sae()
    mirrored.W_dec.data.neg_()
    worse = evaluate_embeddings(mirrored, train, probe=probe).embeddings.loc["image"]
    assert worse["probe_agreement"] < 0.1
    p, q = probe(train).softmax(-1), probe(-train).softmax(-1)
    assert worse["probe_kl"] == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)


def test_probe_matches_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(2)
    x = torch.nn.functional.normalize(torch.randn(200, 5, generator=generator), dim=-1)
    labels = (x @ torch.randn(5, 3, generator=generator)).argmax(-1)
    ours = fit_linear_probe(x, labels, weight_decay=1e-2)
    theirs = LogisticRegression(C=1 / (200 * 1e-2), max_iter=1000, tol=1e-8)
    theirs.fit(x.numpy(), labels.numpy())
    torch.testing.assert_close(
        ours(x).softmax(-1),
        torch.from_numpy(theirs.predict_proba(x.numpy())).float(),
        atol=2e-3,
        rtol=0,
    )


def test_the_probe_finds_a_linear_rule_and_no_other():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 5, generator=generator) * torch.tensor([1.0, 1, 1, 1, 100]) + 3
    rule = (rows[:, 0] - rows[:, 1] > 0).long()
    probe = fit_linear_probe(rows[:400], rule[:400], unit_rows=False)
    assert probe.accuracy(rows[400:], rule[400:]) >= 0.97
    exclusive_or = ((rows[:, 0] > 3) ^ (rows[:, 1] > 3)).long()
    probe = fit_linear_probe(rows[:400], exclusive_or[:400], unit_rows=False)
    assert probe.accuracy(rows[400:], exclusive_or[400:]) <= 0.65


def test_probe_refuses_what_it_cannot_learn():
    with pytest.raises(ValueError, match="there are 3 labels; want 4"):
        fit_linear_probe(torch.randn(4, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="want one from 0 up"):
        fit_linear_probe(torch.randn(2, 2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="holds NaN"):
        fit_linear_probe(torch.tensor([[math.nan], [1.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit_linear_probe(torch.randn(2, 2), torch.tensor([0, 0]))


def test_histogram_by_hand():
    histogram = ActivationHistogram(d_sae=3)
    histogram.add(torch.tensor([[0.0, 2.0, 0.05], [0.0, 30.0, 0.0]]))
    for _ in range(99):
        histogram.add(torch.tensor([[0.0, 2.0, 0.0]] * 2))
    table = histogram_table(histogram, n_rows=200)
    assert table.index.names == ["magnitude_from", "magnitude_to"]
    counts = table[table["all"] > 0].reset_index()
    eighth = 10 ** (1 / 8)
    # 0.05, 2 and 30 lie between these powers of an eighth of a decade
    assert counts["magnitude_from"].to_list() == pytest.approx([eighth**-11, eighth**2, eighth**11])
    assert counts["all"].to_list() == [1, 199, 1]
    assert counts["(0.1, 1]"].to_list() == [0, 199, 1]  # latent 1: active on every row
    assert counts["(0.001, 0.01]"].to_list() == [1, 0, 0]  # latent 2: on one of 200


def test_row_sample_is_uniform_and_does_not_depend_on_batches():
    rows = torch.arange(1000.0)[:, None]
    whole, parts = RowSample(100, seed=3), RowSample(100, seed=3)
    whole.update(rows)
    for part in rows.split(17):
        parts.update(part)
    assert torch.equal(whole.rows, parts.rows)
    assert len(whole.rows.unique()) == 100
    assert abs(whole.rows.mean().item() - 499.5) < 4 * 289 / math.sqrt(100)


def test_default_k_list():
    assert default_k_list(100) == [16, 32, 64, 100]
    assert default_k_list(64) == [16, 32, 64]
    assert default_k_list(8) == [8]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k_list": [4, 2]}, "k_list is \\[4, 2\\]; want rising"),
        ({"k_list": [0, 2]}, "from 1 to d_sae, 16"),
        ({"k_list": [17]}, "from 1 to d_sae, 16"),
        ({"batch_size_rows": 0}, "batch_size_rows is 0; want 1"),
        ({"rows": torch.randn(4, 7)}, "7 wide; want 8, the SAE's d_in"),
        ({"rows": torch.randn(0, 8)}, "no image rows"),
        ({"rows": torch.randn(2, 3, 8)}, r"rows are \[2, 3, 8\]; want \[n, d_in\]"),
        ({"statistics": EmbeddingStatistics(torch.zeros(7), 1.0)}, "7 wide; want 8, the SAE's"),
    ],
)
def test_wrong_input_is_refused(rows, kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(pair_sae(), **({"rows": rows} | kwargs))


def test_tables_come_back_from_disk_with_their_row_labels(rows, tmp_path):
    report = evaluate_embeddings(pair_sae(), rows, k_list=[2, 16])
    loaded = EvaluationReport.load(report.save(tmp_path))
    for name, table in report.tables.items():
        pd.testing.assert_frame_equal(loaded.tables[name], table)
    csv = pd.read_csv(tmp_path / "progressive_recovery.csv", index_col=["modality", "k"])
    assert csv.index.to_list() == [("image", 2), ("image", 16)]
    assert max(map(len, str(report).splitlines())) < 120


def test_matryoshka_sae_recovers_more_at_every_k(rows):
    sae = MatryoshkaTopKSAE(MatryoshkaTopKSAEConfig(d_in=8, d_sae=16, k=4))
    sae.load_state_dict(pair_sae().state_dict(), strict=False)
    report = evaluate_embeddings(sae, rows, k_list=[1, 4, 16])
    recovery = report.progressive_recovery.loc["image"]
    assert recovery["l0"].to_list() == [1, 4, 8]
    assert recovery["fvu"].to_list() == sorted(recovery["fvu"], reverse=True)
    assert report.embeddings.loc["image", "l0"] == 4  # the config's k
