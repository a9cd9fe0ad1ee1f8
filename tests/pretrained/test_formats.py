"""Each project's files, opened and compared with the project's formula."""

import warnings

import pytest
import torch
from sae_lens import SAE

from tests.pretrained.small_files import D_IN, SMALL_FILES, numbers
from vit_sae_plugin.activations import EmbeddingStatistics
from vit_sae_plugin.pretrained import FORMATS, load_pretrained_sae
from vit_sae_plugin.pretrained.read_sae import at_least

ROWS = 1.5 * numbers(20, 40, D_IN)
TOLERANCE = 2e-5
OURS = {"MatryoshkaTopKSAE", "SignedTopKSAE"}


def opened(small_file, folder):
    place = small_file.write(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_pretrained_sae(f"{small_file.kind}:{place}", **small_file.options)


def outputs(sae, rows):
    """Latents and reconstruction of raw rows, by way of the statistics in the metadata."""
    statistics = sae.cfg.metadata.input_statistics
    if statistics is None:
        latents = sae.encode(rows)
        return latents, sae.decode(latents)
    statistics = EmbeddingStatistics.from_metadata(statistics)
    latents = sae.encode(statistics.standardize(rows))
    return latents, statistics.restore(sae.decode(latents))


@pytest.mark.parametrize("small_file", SMALL_FILES, ids=str)
@torch.no_grad()
def test_outputs_are_those_of_the_formula(small_file, tmp_path):
    sae = opened(small_file, tmp_path)
    latents, restored = outputs(sae, ROWS)
    wanted = small_file.encode(ROWS)
    difference = max(
        (latents - wanted).abs().max().item(),
        (restored - small_file.decode(wanted)).abs().max().item(),
    )
    print(f"{small_file}: largest difference {difference:.1e}")
    assert difference < TOLERANCE
    # a test of zeros would say nothing, nor would one in which every latent fires
    assert 0.05 < (wanted != 0).double().mean() < 0.95
    assert type(sae).__name__ == small_file.sae_class
    home = "vit_sae_plugin." if small_file.sae_class in OURS else "sae_lens."
    assert type(sae).__module__.startswith(home)

    metadata = sae.cfg.metadata
    for name, value in small_file.metadata.items():
        assert metadata[name] == value, name
    assert metadata.model_class_name == "HookedViT"
    assert metadata.source.startswith(f"{small_file.kind}:")
    assert len(metadata.source_sha256) == 64

    sae.save_model(tmp_path / "saved")
    again = SAE.load_from_disk(tmp_path / "saved")
    for one, other in zip(outputs(again, ROWS), (latents, restored), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert again.cfg.metadata.to_dict() == metadata.to_dict()


def test_every_kind_has_a_file():
    assert {small_file.kind for small_file in SMALL_FILES} == set(FORMATS)


def test_what_the_user_states_replaces_what_the_file_says(tmp_path):
    place = SMALL_FILES[0].write(tmp_path)
    sae = load_pretrained_sae(
        f"patchsae:{place}",
        dtype="float64",
        hook_name="blocks.3.hook_resid_post",
        model_name="shapes-clip",
        licence="CC0-1.0",
    )
    assert sae.W_dec.dtype == torch.float64
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert sae.cfg.metadata.model_name == "shapes-clip"
    assert sae.cfg.metadata.licence == "CC0-1.0"
    assert sae.cfg.metadata.source_settings["l1_coefficient"] == 8e-5


def test_what_nothing_says_is_told(tmp_path):
    place = next(f for f in SMALL_FILES if f.name == "sparsify topk").write(tmp_path)
    with pytest.warns(UserWarning, match="doesn't say model_name, hook_name, token_kind; state"):
        load_pretrained_sae(f"sparsify:{place}")


@pytest.mark.parametrize("threshold", [0.0, 0.25, 1e-30, 3.7e5])
def test_at_or_above_a_threshold_is_exact(threshold):
    at = torch.tensor(threshold)
    below = torch.nextafter(at, torch.tensor(-torch.inf))
    kept = torch.stack([below, at]) > at_least(threshold)
    assert kept.tolist() == [False, True]
