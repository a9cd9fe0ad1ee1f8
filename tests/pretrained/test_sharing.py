"""An SAE goes to the hub with its card, and comes back, on a stand-in of the hub's client."""

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from tests.pretrained.hub_stand_in import HubStandIn
from vit_sae_plugin.pretrained import HubError, share_sae


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.save_model(tmp_path / "sae")
    (tmp_path / "sae" / "README.md").write_text("# A card\n")
    (tmp_path / "sae" / "card.png").write_bytes(b"picture")
    (tmp_path / "sae" / "evaluation").mkdir()
    (tmp_path / "sae" / "evaluation" / "private.csv").write_text("1\n")
    return tmp_path / "sae"


@torch.no_grad()
def test_there_and_back(folder, tmp_path, monkeypatch):
    hub = HubStandIn(tmp_path / "hub", monkeypatch)
    line = share_sae(folder, "someone/saes", "first")
    assert line == 'SAE.from_pretrained("someone/saes", "first")'
    there = hub.folder("someone/saes")
    names = sorted(
        path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()
    )
    assert names == [
        "README.md",
        "first/README.md",
        "first/card.png",
        "first/cfg.json",
        "first/sae_weights.safetensors",
    ]
    assert (there / "first" / "README.md").read_text() == "# A card\n"
    assert "library_name: saelens" in (there / "README.md").read_text()
    back = SAE.from_pretrained("someone/saes", "first")
    rows = torch.randn(5, 4)
    assert torch.equal(back(rows), SAE.load_from_disk(folder)(rows))
    assert back.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


def test_a_hub_that_refuses(folder, tmp_path, monkeypatch):
    HubStandIn(tmp_path / "hub", monkeypatch)
    import sae_lens.training.upload_saes_to_huggingface as upload

    def refuse(*_args, **_other):
        raise PermissionError("403 Forbidden\nyou have no rights to someone/saes")

    monkeypatch.setattr(upload, "create_repo", refuse)
    with pytest.raises(HubError, match=r"someone/saes can't be put on .*403 Forbidden") as caught:
        share_sae(folder, "someone/saes", "first")
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_sae(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it holds no cfg\.json"):
        share_sae(tmp_path, "someone/saes", "first")
