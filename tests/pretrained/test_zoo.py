"""Released SAEs by name."""

import pytest
import torch
from sae_lens import SAE

from tests.cli.command import vit_sae
from tests.pretrained.small_files import SMALL_FILES
from vit_sae_plugin.pretrained import FORMATS, load_pretrained_sae, options_of
from vit_sae_plugin.pretrained import zoo as zoo_module
from vit_sae_plugin.pretrained.load import SAE_LENS
from vit_sae_plugin.pretrained.zoo import STATUSES, ZooEntry, read_entries, zoo, zoo_source
from vit_sae_plugin.saes import PatchTrainingSAE, PatchTrainingSAEConfig

ENTRY = {
    "name": "mine",
    "kind": "saev",
    "hub": "org/repo",
    "file": None,
    "model": None,
    "hook_name": None,
    "tokens": None,
    "licence": None,
    "wants": [],
    "measured": {},
    "status": "layout",
    "note": None,
}


@pytest.mark.parametrize("entry", zoo().values(), ids=lambda entry: entry.name)
def test_every_entry_has_a_reader_and_states_what_its_reader_knows(entry):
    if entry.kind != SAE_LENS:
        assert set(entry.wants) <= set(options_of(entry.kind))
        assert entry.licence in (None, FORMATS[entry.kind].licence)
    assert entry.tokens in (None, "all", "patches", "cls")
    if entry.hub is not None:
        assert entry.source().startswith(f"{entry.kind}:{entry.hub}")
        assert entry.hub.count("/") == 1


def test_nothing_is_said_to_be_opened_without_figures():
    assert {entry.status for entry in zoo().values()} == {"layout"}
    assert read_entries([{**ENTRY, "status": "opened", "measured": {"l0": 20.0}}])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "opened"}, "'opened' with 0 figures"),
        ({"measured": {"l0": 3.0}}, "'layout' with 1 figures"),
        ({"status": "fine"}, "status is 'fine'; want opened or layout"),
        ({"hub": None}, "want a note that says where it is"),
        ({"kind": 3}, "kind is 3; want a text"),
        ({"url": "x"}, "the entry 'mine' lacks, or has too many: url"),
    ],
)
def test_a_bad_entry_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        read_entries([{**ENTRY, **change}])


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two entries are called 'mine'"):
        read_entries([ENTRY, ENTRY])


def test_a_name_stands_for_its_source(tmp_path, monkeypatch):
    assert (
        zoo_source("clip-scope-l14")
        == "clipscope:lewington/CLIP-ViT-L-scope/22_resid/1200013184.pt"
    )
    assert zoo_source("saev-dinov3-b16/a/sae.pt") == "saev:osunlp/SAE_DINOv3_ViT-B-16_IN1K/a/sae.pt"
    with pytest.raises(ValueError, match=r"no SAE of the zoo; .* \(near: clip-scope-l14"):
        load_pretrained_sae("clip-scope-l15")
    with pytest.raises(ValueError, match="patchsae-clip-b16 can't be opened by its name: one zip"):
        load_pretrained_sae("patchsae-clip-b16")

    small = next(one for one in SMALL_FILES if one.kind == "saev" and not one.options)
    monkeypatch.chdir(tmp_path)  # what lies here goes before the hub
    (tmp_path / "org" / "repo").mkdir(parents=True)
    place = small.write(tmp_path / "org" / "repo")
    entry = ZooEntry(**{**ENTRY, "file": str(place.relative_to(tmp_path / "org" / "repo"))})
    monkeypatch.setattr(zoo_module, "zoo", lambda: {"mine": entry})
    sae = load_pretrained_sae("mine", model_name="shapes-clip", hook_name="h", token_kind="all")
    assert sae.cfg.metadata.source_project == FORMATS["saev"].project


def test_what_this_package_saved_is_an_entry_like_another(tmp_path, monkeypatch):
    cfg = PatchTrainingSAEConfig(d_in=8, d_sae=16, device="cpu")
    saved = PatchTrainingSAE(cfg)
    monkeypatch.chdir(tmp_path)  # what lies here goes before the hub
    saved.save_inference_model("org/repo/blocks.2")
    entry = ZooEntry(**{**ENTRY, "kind": SAE_LENS, "file": "blocks.2"})
    monkeypatch.setattr(zoo_module, "zoo", lambda: {"mine": entry})
    sae = load_pretrained_sae("mine", dtype="float64")
    assert (sae.W_dec.dtype, sae.cfg.architecture()) == (torch.float64, "patchsae")
    torch.testing.assert_close(sae.W_dec, saved.W_dec.double(), rtol=0, atol=0)
    with torch.no_grad():
        saved.W_dec[0, 0] = torch.nan
    saved.save_inference_model("org/repo/diverged")
    with pytest.raises(ValueError, match=r"W_dec of the SAE in .*diverged holds 1 values"):
        load_pretrained_sae("sae_lens:org/repo/diverged")

    with pytest.raises(ValueError, match="sae_lens has no option 'hook_name'"):
        load_pretrained_sae("mine", hook_name="h")
    with pytest.raises(FileNotFoundError, match="want sae_lens:PATH or sae_lens:ORG/REPO/SAE_ID"):
        load_pretrained_sae("sae_lens:org/nothing")
    asked = []
    monkeypatch.setattr(SAE, "from_pretrained", lambda *names, **_: asked.append(names))
    load_pretrained_sae("sae_lens:org/repo/other/one")
    assert asked == [("org/repo", "other/one")]


def test_the_command_prints_every_entry_and_what_was_not_opened(capsys):
    assert vit_sae("zoo") == 0
    said = capsys.readouterr().out
    for entry in zoo().values():
        assert f"  {entry.name} " in said
    assert f"{STATUSES['opened']} (0):" in said
    assert f"{STATUSES['layout']} ({len(zoo())}):" in said
    assert vit_sae("zoo", "visaebench-clip-b16") == 0
    said = capsys.readouterr().out
    assert "status: layout known, not opened for want of a network" in said
    assert "to be stated: input_statistics" in said
    assert vit_sae("zoo", "nothing") == 2
    assert "'vit-sae zoo' lists" in capsys.readouterr().err
