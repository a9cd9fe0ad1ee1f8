"""The example that adapts, masks and compares runs from the beginning to its page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "adaptation_study.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("adaptation_study", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_intervals_over_seeds_by_hand(study):
    index = pd.MultiIndex.from_product([["maple"], [1, 2, 3]], names=["method", "seed"])
    table = pd.concat(
        [
            pd.DataFrame(
                {"base": [0.5]}, index=pd.MultiIndex.from_tuples([("plain", 0)], names=index.names)
            ),
            pd.DataFrame({"base": [0.6, 0.7, 0.8]}, index=index),
        ]
    )
    found = study.over_seeds(table)
    assert found.loc["plain", ("base", "mean")] == 0.5
    assert np.isnan(found.loc["plain", ("base", "low")])  # one run tells of no others
    half = 4.303 * 0.1 / 3**0.5
    assert found.loc["maple"].tolist() == pytest.approx([0.7, 0.7 - half, 0.7 + half])


def test_the_short_study_writes_its_page(study, tmp_path):
    page = study.main(["--short", "--methods", "linear_probe", "--output-path", str(tmp_path)])
    assert page == tmp_path / "index.html"
    text = page.read_text()
    for heading in ("What adaptation gains", "Does the SAE still describe", "Every adaptation"):
        assert heading in text
    table = pd.read_csv(tmp_path / "accuracy.csv", index_col=["method", "seed"])
    probe = table.loc[("linear_probe", 1)]
    assert np.isnan(probe["novel"])  # it knows no other classes
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary["accuracy_adapted"].item() == pytest.approx(probe["base"])
    assert summary[["high_to_low", "low_to_high"]].to_numpy().tolist() == [[0, 0]]
    # a probe changes no block: other heads make all of the difference
    effects = pd.read_csv(tmp_path / "effects.csv").fillna({"latents": ""})
    swapped = effects.query("change == 'other head'").set_index("model")["accuracy"]
    own = effects.query("change == 'none'").set_index("model")["accuracy"]
    assert swapped["plain"] == own["adapted"]
    assert swapped["adapted"] == own["plain"]
    assert (tmp_path / "masking-adapted.csv").is_file()
