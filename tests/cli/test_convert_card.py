"""``vit-sae convert`` and ``vit-sae card``: from another project's file to a folder to share."""

import json
import os
import pickle

import pytest
import torch
from PIL import Image
from sae_lens import SAE

from tests.cli.command import vit_sae
from tests.pretrained import small_files as small
from tests.pretrained.hub_stand_in import HubStandIn
from vit_sae_plugin import AttachedSAE, HookedViT

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of dictionary_learning that fits the packaged model."""
    folder = tmp_path_factory.mktemp("other") / "trainer_0"
    folder.mkdir()
    d_in = HookedViT.from_pretrained("shapes-clip").cfg.d_model
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(d_in, 64, generator=generator)
    decoder /= decoder.norm(dim=0)
    state = {
        "encoder.weight": decoder.T.contiguous(),
        "encoder.bias": torch.zeros(64),
        "decoder.weight": decoder,
        "b_dec": torch.zeros(d_in),
        "k": torch.tensor(8),
        "threshold": torch.tensor(-1.0),
    }
    torch.save(state, folder / "ae.pt")
    settings = {"dict_class": "AutoEncoderTopK", "activation_dim": d_in, "dict_size": 64, "k": 8}
    (folder / "config.json").write_text(json.dumps({"trainer": settings | {"lr": 0.001}}))
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "sae"
    code = vit_sae(
        *("convert", f"dictionary_learning:{checkpoint}", folder, "--model", "shapes-clip"),
        *("--hook-name", HOOK, "--token-kind", "all", "--licence", "MIT"),
    )
    assert code == 0
    return folder


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_converted_folder_opens_in_sae_lens(converted):
    names = {path.name for path in converted.iterdir()}
    assert {"README.md", "cfg.json", "sae_weights.safetensors"} <= names
    sae = SAE.load_from_disk(converted)
    assert (type(sae).__name__, sae.cfg.k) == ("TopKSAE", 8)
    assert sae.cfg.metadata.hook_name == HOOK
    model = HookedViT.from_pretrained("shapes-clip")
    AttachedSAE(model, sae)
    card = (converted / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelens\n")
    assert 'license: "mit"' in card
    assert f"| hook | {HOOK} |" in card
    assert "| lr | 0.001 |" in card
    assert "Nothing yet. `vit-sae card FOLDER --images SOURCE`" in card
    # no folder of this machine
    assert str(converted.parent) not in card


def test_what_must_be_stated_can_be(tmp_path, capsys):
    file = small.write_overcomplete()(tmp_path)
    assert vit_sae("convert", f"overcomplete:{file}", tmp_path / "out") == 2
    assert "state activation='topk'" in last_line(capsys)
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="doesn't say model_name, hook_name, token_kind"):
        code = vit_sae(
            *("convert", f"overcomplete:{file}", tmp_path / "out"),
            *("--set", "activation=topk", "--set", "k=4"),
        )
    assert code == 0
    said = capsys.readouterr()
    assert "topk, 6 → 10 latents" in said.out
    assert "hook: not stated" in said.out
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


def test_bad_input_is_one_line(checkpoint, converted, tmp_path, capsys):
    hostile = tmp_path / "weights.pt"

    class Call:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    hostile.write_bytes(pickle.dumps({"state_dict": Call()}))
    for source, wanted in {
        f"patchsae:{hostile}": "it asks to call posix.system; nothing was run",
        f"patchsae:{tmp_path}/none.pt": "there is no file or folder",
        f"patch:{hostile}": "'patch' is no kind of SAE",
        "prisma:org/no-such-repository": "can't be had from the Hugging Face hub",
    }.items():
        assert vit_sae("convert", source, tmp_path / "out") == 2
        assert wanted in last_line(capsys)
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "out").exists()
    assert vit_sae("convert", f"dictionary_learning:{checkpoint}", converted) == 2
    assert "name a new folder" in last_line(capsys)
    assert (
        vit_sae("convert", f"dictionary_learning:{checkpoint}", tmp_path / "o", "--set", "k") == 2
    )
    assert "want NAME=VALUE" in last_line(capsys)


def test_a_card_with_figures_and_a_picture(converted, capsys, tmp_path, monkeypatch):
    images = "shapes:test?n_images=40"
    code = vit_sae("card", converted, "--images", images, "--n-images", 24, "--device", "cpu")
    assert code == 0, capsys.readouterr().err
    card = (converted / "README.md").read_text()
    assert f"vit-sae card FOLDER --images '{images}' --n-images 24" in card
    table = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for line in card.splitlines()
        if len(cells := line.split("|")) == 5
    }
    ours, control = (float(cell) for cell in table["active latents a token (L0)"])
    assert 0 < ours <= 8
    assert abs(control - ours) < 1  # as sparse as the SAE
    assert all(float(cell) < 1 for cell in table["explained variance"])
    assert "cosine of the output with the untouched one" in table
    assert "no latent was picked by hand" in card
    with Image.open(converted / "card.png") as picture:
        assert picture.size[0] > 400

    hub = HubStandIn(tmp_path / "hub", monkeypatch)
    assert vit_sae("card", converted, "--upload", "me/saes", "--sae-id", "one") == 0
    assert 'SAE.from_pretrained("me/saes", "one")' in capsys.readouterr().out
    there = hub.folder("me/saes") / "one"
    assert (there / "README.md").read_text() == card  # not measured again, and not written over
    assert (there / "card.png").read_bytes() == (converted / "card.png").read_bytes()


def test_rows_for_neuronpedia_from_analyze(converted, photos, tmp_path, capsys):
    code = vit_sae(
        *("analyze", converted, "--images", photos, "--output-path", tmp_path / "atlas"),
        *("--neuronpedia", tmp_path / "rows"),
    )
    assert code == 0
    assert "NOT_INCLUDED.md there says" in capsys.readouterr().out
    assert (tmp_path / "rows" / "shapes-clip" / "2-vit-sae" / "source.jsonl").is_file()
