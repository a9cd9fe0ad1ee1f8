"""Sparse probing and absorption: rankings and probes as scikit-learn has them, Jaccard by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from vit_sae_plugin.evaluation.absorption import absorption
from vit_sae_plugin.evaluation.binary_probes import fit_binary_probes
from vit_sae_plugin.evaluation.features import SparseFeatures
from vit_sae_plugin.evaluation.sparse_probing import (
    area_over_k,
    best_features,
    f_statistics,
    first_half,
    probe_concepts,
)


def sparse(values):
    features = SparseFeatures(values.shape[1])
    for part in values.split(7):
        features.append(part)
    return features


@pytest.fixture
def data():
    torch.manual_seed(0)
    values = torch.randn(60, 9).relu()
    values[:, 5] = 0
    present = torch.rand(60, 3) < 0.4
    values[:, 7] += 2 * present[:, 1]
    return values, present


def test_f_statistics_are_scikit_learns(data):
    feature_selection = pytest.importorskip("sklearn.feature_selection")
    values, present = data
    train = first_half(60)
    found = f_statistics(sparse(values), present, train)
    live = [at for at in range(9) if at != 5]
    for concept in range(3):
        x, y = values[train][:, live].double().numpy(), present[train, concept].numpy()
        np.testing.assert_allclose(found[live, concept], feature_selection.f_classif(x, y)[0])
    assert found[5].tolist() == [0, 0, 0]
    assert best_features(found, 1)[1].item() == 7


def test_a_feature_that_is_its_concept_comes_first_and_ties_by_number():
    present = torch.tensor([[True], [True], [True], [False], [False], [False]])
    values = torch.stack([present[:, 0] * 0.0, present[:, 0] * 2.0, present[:, 0] * 5.0], 1)
    f = f_statistics(sparse(values), present, torch.ones(6, dtype=torch.bool))
    assert best_features(f, 3)[0].tolist() == [1, 2, 0]


def test_probes_are_scikit_learns_on_standardised_features(data):
    linear_model = pytest.importorskip("sklearn.linear_model")
    values, present = data
    x = torch.stack([values[:, [0, 1, 7]].double() * scale for scale in (1, 100, 0.01)])
    weights, biases = fit_binary_probes(x, present.T)
    for concept in range(3):
        mean, scale = x[concept].mean(0), x[concept].std(0, unbiased=False)
        theirs = linear_model.LogisticRegression(tol=1e-10, max_iter=1000)
        theirs.fit(((x[concept] - mean) / scale).numpy(), present[:, concept].numpy())
        np.testing.assert_allclose(weights[concept] * scale, theirs.coef_[0], atol=1e-5)
        logits = x[concept].double() @ weights[concept] + biases[concept]
        theirs_too = theirs.decision_function(((x[concept] - mean) / scale).numpy())
        np.testing.assert_allclose(logits, theirs_too, atol=1e-4)


def test_probes_of_separable_and_constant_features_stay_finite():
    y = torch.arange(40) >= 20
    x = torch.stack([y.double() * 1e6, torch.full((40,), 3.0)], 1)[None]
    weights, biases = fit_binary_probes(x, y[None])
    assert weights.isfinite().all()
    assert weights[0, 1] == 0
    assert (((x[0] @ weights[0] + biases[0]) > 0) == y).all()


def test_held_out_scores_of_a_perfect_and_of_a_blind_feature():
    torch.manual_seed(0)
    y = torch.rand(400) < 0.3
    features = sparse(torch.stack([y * 3.0, torch.rand(400)], 1))
    concepts = [("class", "cat")]
    table, best = probe_concepts(features, concepts, y[:, None], ks=(1, 2, 50))
    assert best.tolist() == [[0, 1]]
    assert table.loc[("class", "cat", 1)].tolist() == [1, 1]
    # of many blind features some fit the first half well, but not the second
    blind, _ = probe_concepts(sparse(torch.rand(400, 300)), concepts, y[:, None], ks=(1, 60))
    assert blind["auroc"].to_numpy() == pytest.approx(0.5, abs=0.15)


def test_the_order_of_features_changes_nothing_but_their_numbers(data):
    values, present = data
    concepts = [("kind", name) for name in "abc"]
    order = torch.randperm(9)
    first, best = probe_concepts(sparse(values), concepts, present, ks=(1, 3))
    second, best_again = probe_concepts(sparse(values[:, order]), concepts, present, ks=(1, 3))
    pd.testing.assert_frame_equal(first, second)
    assert order[best_again].tolist() == best.tolist()


def test_area_is_over_the_logarithm_of_k():
    index = pd.MultiIndex.from_product(
        [["kind"], ["a"], [1, 10, 100]], names=["kind", "concept", "k"]
    )
    by_k = pd.Series([0.5, 0.7, 0.9], index=index)
    assert area_over_k(by_k).tolist() == pytest.approx([0.7])
    assert area_over_k(by_k.iloc[:1]).tolist() == [0.5]


def test_absorption_by_hand():
    concepts = [("class", name) for name in ("cat", "dog", "owl", "hen")]
    best = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5], [6, 7, 8, 9], [6, 10, 11, 12]])
    keys = pd.MultiIndex.from_tuples(
        [(*concept, k) for concept in concepts for k in (1, 4)], names=["kind", "concept", "k"]
    )
    f1 = pd.Series([0.2, 0.6, 0.5, 0.7, 0.9, 0.9, 0.1, 0.1], index=keys)
    groups = {"pets": ["cat", "dog"], "birds": ["owl", "hen"], "fish": ["cod", "eel"]}
    table, others = absorption(concepts, best, f1, groups)
    assert list(table.index) == ["pets", "birds"]
    np.testing.assert_allclose(table.loc["pets"], [1, 2 / 6, 0.3])
    np.testing.assert_allclose(table.loc["birds"], [1, 1 / 7, 0])
    assert others == 0
