"""``vit-sae eval --suite bias`` on a made-up folder in the layout of Waterbirds."""

import json

import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.cli.command import vit_sae
from vit_sae_plugin import HookedViT
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES

BIRDS = {"circle": 0, "star": 1}
"""Land birds are circles, water birds stars."""
PLACES = {"green": 0, "blue": 1}
SPLITS = {"train": 0, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Twenty training images of each bird at its own place, five at the other's; at test four of
    each group."""
    root = tmp_path_factory.mktemp("data") / "waterbirds"
    root.mkdir()
    rows = []
    scenes = ShapeScenes(3000, n_objects=1, seed=2)
    labels = scenes.labels()
    for bird, y in BIRDS.items():
        for color, place in PLACES.items():
            n_train = 20 if y == place else 5
            found = (labels == SCENE_CLASS_NAMES.index(f"{color} {bird}")).nonzero()[0]
            for at, index in enumerate(found[: n_train + 4]):
                name = f"{bird}-{color}-{at}.png"
                scenes.scene(int(index)).image.save(root / name)
                split = SPLITS["train" if at < n_train else "test"]
                rows.append(f"{len(rows)},{name},{y},{split},{place},x")
    head = "img_id,img_filename,y,split,place,place_filename"
    (root / "metadata.csv").write_text("\n".join([head, *rows]))
    return root


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """Each coordinate of the image embedding, once for either sign."""
    model = HookedViT.from_pretrained("shapes-clip")
    d = model.cfg.d_embed
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=2 * d))
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    weights = {"W_enc": both.T.contiguous(), "W_dec": both}
    sae.load_state_dict(weights | {"b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)})
    ActivationSource.from_model(model, "hook_image_embed", "all").stamp(sae, model)
    folder = tmp_path_factory.mktemp("sae")
    sae.save_model(folder)
    return folder


def test_waterbirds_by_command(birds, sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "bias", "--images", f"waterbirds:{birds}:test")
    fitted = ("--attribute", "place", "--fit-images", f"waterbirds:{birds}:train")
    assert vit_sae(*study, *fitted, "--device", "cpu", "--output-path", tmp_path / "b") == 0
    assert "mending" in capsys.readouterr().out
    mending = pd.read_csv(tmp_path / "b" / "mending.csv")
    assert set(mending["suppressed"]) == {"none", "concepts", "random latents", "neurons"}
    assert "weighted_mean" in mending  # by the training groups, as Waterbirds is reported
    groups = pd.read_csv(tmp_path / "b" / "groups.csv", index_col="group")
    assert groups["n_images"].to_dict() == {
        "landbird, land": 4,
        "landbird, water": 4,
        "waterbird, land": 4,
        "waterbird, water": 4,
    }
    assert (tmp_path / "b" / "bias.png").stat().st_size > 10_000
    settings = json.loads((tmp_path / "b" / "evaluation.json").read_text())["settings"]
    assert settings["attribute"] == "place"


def test_what_is_missing_is_said(birds, sae, tmp_path, capsys):
    study = ("eval", sae, "--suite", "bias", "--images", f"waterbirds:{birds}:test")
    for options, message in (
        ((), "wants --attribute NAME"),
        (("--attribute", "place"), "--fit-images SOURCE, for a linear probe"),
        (
            ("--attribute", "plac", "--fit-images", f"waterbirds:{birds}:train"),
            "attribute is 'plac'",
        ),
    ):
        assert vit_sae(*study, *options, "--output-path", tmp_path / "m") == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert vit_sae("eval", sae, "--images", "shapes", "--refit") == 2
    assert "--refit goes with --suite bias" in capsys.readouterr().err
