"""``vit-sae analyze --compare``: from an adaptation's folder to tables and a page."""

import pandas as pd
import pytest

from tests.cli.command import vit_sae
from vit_sae_plugin import HookedViT
from vit_sae_plugin.adaptation import AdaptationConfig, adapt

POOL = "shapes:train?n_images=640&n_objects=1&style=outline"
TRAIN, TEST = f"{POOL}&shots=1&classes=base", f"{POOL}&seed=5&shots=2&classes=base"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An SAE and an adapted model, both hardly trained."""
    folder = tmp_path_factory.mktemp("made")
    code = vit_sae(
        *("train", "--preset", "patchsae-shapes", "--images", TRAIN, "--training-tokens", 2000),
        *("--d-sae", 64, "--device", "cpu", "--output-path", folder / "run"),
        *("--set", "train_batch_size_tokens=400", "--set", "lr_warm_up_steps=1"),
        *("--set", "lr_decay_steps=1"),
    )
    assert code == 0
    config = AdaptationConfig(method="maple", preset="shapes", shots=1, epochs=1)
    adapt(HookedViT.from_pretrained("shapes-clip"), POOL, config, folder / "maple", progress=False)
    return folder


def test_an_adapted_model_is_set_beside_its_own(made, tmp_path, capsys):
    compare = ("analyze", made / "run" / "sae", "--images", TEST, "--compare", made / "maple")
    assert vit_sae(*compare, "--output-path", tmp_path / "c") == 0
    shown = capsys.readouterr().out
    assert shown.index("quality") < shown.index("summary")
    summary = pd.read_csv(tmp_path / "c" / "summary.csv")
    assert summary["n_classes"].tolist() == [32]
    assert summary["n_images"].tolist() == [32]  # the other half found the latents
    effects = pd.read_csv(tmp_path / "c" / "effects.csv").fillna("")
    adapted = effects.query("model == 'adapted' and change == 'none'")["accuracy"].item()
    assert summary["accuracy_adapted"].item() == adapted
    page = (tmp_path / "c" / "index.html").read_text()
    assert "Does the SAE still describe the adapted model?" in page
    assert page.count("data:image/png") > 20
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    # other images for finding latents leave all of --images to score
    assert vit_sae(*compare, "--ranking-images", TRAIN, "--output-path", tmp_path / "r") == 0
    assert pd.read_csv(tmp_path / "r" / "summary.csv")["n_images"].tolist() == [64]


def test_what_does_not_go_together_is_one_line(made, tmp_path, capsys):
    compare = ("analyze", made / "run" / "sae", "--output-path", tmp_path / "c")
    cases = [
        (("--compare", made / "maple"), "want --images SOURCE"),
        (("--compare", made / "maple", "--report", "r"), "--report doesn't go with --compare"),
        (("--images", TEST, "--ranking-images", TEST), "--ranking-images goes with --compare"),
        (("--images", TEST, "--compare", tmp_path / "no"), "no"),
        (("--images", "shapes:test?n_images=3", "--compare", made / "maple"), "have no image in"),
    ]
    for arguments, message in cases:
        assert vit_sae(*compare, *arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
    assert not (tmp_path / "c").exists()
