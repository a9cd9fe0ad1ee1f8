"""The three routes to a latent's direction, against sums and passes written out."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch.nn.functional import normalize

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.attached_sae import AttachedSAE, scale
from vit_sae_plugin.concepts.direct_route import direct
from vit_sae_plugin.concepts.image_conditioned import WeightedEmbeddings, image_conditioned
from vit_sae_plugin.concepts.measured_shift import measured_shift

N = 11


@pytest.fixture(scope="module")
def attached():
    model = make_model()
    return AttachedSAE(model, make_sae(model))


def pixels_of(attached) -> torch.Tensor:
    source = NoisePictures(N)
    return torch.stack([attached.model.preprocess(source.picture(i)) for i in range(N)])


def test_weighted_means_by_hand():
    sums = WeightedEmbeddings(3, 2)
    sums.add(torch.tensor([[1.0, 0, 0], [3, 2, 0]]), torch.tensor([[1.0, 0], [0, 1]]))
    sums.add(torch.tensor([[0.0, 2, 0]]), torch.tensor([[0.0, -1]]))
    # the mean embedding is (1/3, 0); of latent 0: (1·(1, 0) + 3·(0, 1)) ÷ 4; of 1: (0, 0)
    expected = torch.tensor([[1 / 4 - 1 / 3, 3 / 4], [-1 / 3, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(sums.differences(), expected)
    torch.testing.assert_close(sums.n_effective()[:2], torch.tensor([1.6, 2.0]).double())
    assert sums.n_effective()[2] == 0
    covariance = torch.tensor([[2 / 9, 0], [0, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(sums.covariance, covariance)


@pytest.mark.parametrize("level", ["mean", "max"])
def test_image_conditioned_is_a_weighted_mean_of_embeddings(attached, level):
    found = image_conditioned(attached, NoisePictures(N), level=level, batch_size_images=4)
    with torch.no_grad():
        pixels = pixels_of(attached)
        latents = attached.latents(pixels)
        weight = latents.mean(1) if level == "mean" else latents.amax(1)
        embeds = normalize(attached.model(pixels), dim=-1)
    live = weight.sum(0) > 0
    means = (weight.T @ embeds)[live] / weight.sum(0)[live, None]
    torch.testing.assert_close(found.directions[live], means - embeds.mean(0), atol=1e-5, rtol=1e-4)
    assert not live[7]
    assert not found.directions[7].any()


def test_a_shift_is_what_splicing_measures(attached):
    source = NoisePictures(N)
    atlas = analyze(attached.model, attached.sae, source, n_reference_images=3, progress=False)
    found = measured_shift(attached, atlas, source, latents=[0, 2, 7], factor=3.0)
    pixels = pixels_of(attached)
    images = atlas.reference_images(2)["image"].to_list()
    with torch.no_grad():
        before = normalize(attached.model(pixels[images]), dim=-1)
        after = normalize(
            attached.splice(pixels[images], scale([2], 3.0), use_error_term=True), dim=-1
        )
    expected = (after - before).mean(0)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found.directions[2], expected, atol=1e-6, rtol=1e-3)
    assert not found.directions[[1, 7]].any()  # not asked for; dead
    assert found.n_effective[[0, 1, 2]].tolist() == [3, 0, 3]
    with pytest.raises(ValueError, match="want the source that was analysed"):
        measured_shift(attached, atlas, NoisePictures(N + 1))
    with pytest.raises(ValueError, match="factor is 1"):
        measured_shift(attached, atlas, source, factor=1)


def embedding_sae(model, statistics=None) -> StandardSAE:
    width = model.cfg.d_embed
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=5))
    sae.W_dec.data = torch.randn(5, width, generator=torch.Generator().manual_seed(1))
    for key, value in ActivationSource.from_model(model, "hook_image_embed").to_metadata().items():
        sae.cfg.metadata[key] = value
    if statistics is not None:
        sae.cfg.metadata.input_statistics = statistics.to_metadata()
    return sae


def test_of_the_joint_embedding_the_decoder_row_is_the_direction():
    model = make_model()
    statistics = EmbeddingStatistics(torch.arange(24.0), scale=4.0)
    sae = embedding_sae(model, statistics)
    attached = AttachedSAE(model, sae)
    torch.testing.assert_close(direct(attached).directions, sae.W_dec.data / 4)
    point = direct(attached, "point")
    torch.testing.assert_close(point.directions, sae.W_dec.data / 4 + statistics.mean)
    assert point.is_point
    with pytest.raises(ValueError, match="no mean of its training embeddings"):
        direct(AttachedSAE(model, embedding_sae(model)), "point")
    with pytest.raises(ValueError, match="want direction or point"):
        direct(attached, "projection")


def test_projection_is_the_final_norm_and_the_projection(attached):
    visual = attached.model.bare_model.visual
    rows = attached.sae.W_dec.data
    with torch.no_grad():
        expected = (visual.ln_post(rows) - visual.ln_post(torch.zeros_like(rows))) @ visual.proj
    torch.testing.assert_close(direct(attached).directions, expected, atol=1e-5, rtol=1e-4)


def test_linearized_is_the_derivative_at_the_mean_stream(attached):
    model = attached.model
    found = direct(attached, "linearized", images=NoisePictures(N), n_images=N).directions
    with torch.no_grad():
        mean = model(pixels_of(attached), stop_at_layer=2).mean(0, keepdim=True)
    row = attached.sae.W_dec.data[3]
    row = row / row.norm()
    slope = torch.autograd.functional.jacobian(
        lambda step: model(mean + step * row, start_at_layer=2)[0], torch.zeros(())
    )
    assert torch.cosine_similarity(found[3], slope, dim=0) > 0.99
    with pytest.raises(ValueError, match="and images None; want images"):
        direct(attached, "linearized")
