"""What one look at the tokens finds, in C and by torch operators."""

import pytest
import torch

from tests.analysis.five_images import build, feed, make_atlas, make_builder
from tests.analysis.test_streaming import assert_same_atlas
from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram
from vit_sae_plugin.analysis.counting import largest_keys, token_scan
from vit_sae_plugin.analysis.counting.token_scan import scan_tokens


@pytest.fixture(params=WAYS)
def way(request):
    with doing_it(request.param, token_scan, largest_keys):
        yield


def test_the_five_images_either_way(way):
    builder = make_builder()
    feed(builder, torch.tensor([4, 0]))
    feed(builder, torch.tensor([2, 3, 1]))
    assert_same_atlas(build(builder), make_atlas())


def test_by_hand(way):
    # two images of a class token and three patches, two latents
    latents = torch.zeros(2, 4, 2)
    latents[0, :, 0] = torch.tensor([4.0, 0.25, 0.5, 0.5])
    latents[0, :, 1] = torch.tensor([1.0, 0, 0, 0])
    latents[1, :, 0] = torch.tensor([0, -1.0, -0.0, -2.0])
    found = scan_tokens(latents, torch.tensor([-1, 0, 1, 2]), 0.25, ActivationHistogram(2))
    assert found.total.tolist() == [[5.25, 1], [-3, 0]]
    assert found.maximum.tolist() == [[4, 1], [0, 0]]
    assert found.n_active.tolist() == [[4, 1], [0, 0]]
    assert found.n_above.tolist() == [[3, 1], [0, 0]]
    # of two equal patches the first; the class token is none
    assert found.peak_patch.tolist() == [[1, -1], [-1, -1]]


def test_tokens_without_a_patch(way):
    found = scan_tokens(torch.ones(2, 1, 3), torch.tensor([-1]), 0.2, ActivationHistogram(3))
    assert found.n_active.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (found.peak_patch == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("d_sae", [1, 63, 64, 130, 9000])
def test_wide_and_narrow_latents(way, d_sae, dtype):
    generator = torch.Generator().manual_seed(d_sae)
    shape = (3, 5, d_sae)
    latents = torch.randint(-8, 9, shape, generator=generator) / 8.0
    latents = latents * (torch.rand(shape, generator=generator) < 0.1)
    latents = latents.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    patch = torch.tensor([-1, 0, 1, 2, 3])
    histogram = ActivationHistogram(d_sae)
    scan_tokens(latents, patch, 0.5, histogram)
    found = scan_tokens(latents, patch, 0.25, histogram)
    values = latents.double()
    assert torch.equal(found.total, values.sum(dim=1))
    assert torch.equal(found.maximum.double(), values.amax(dim=1).clamp(min=0))
    assert torch.equal(found.n_active, (values > 0).sum(dim=1).int())
    assert torch.equal(found.n_above, (values > 0.25).sum(dim=1).int())
    largest, place = values[:, 1:].max(dim=1)
    assert torch.equal(found.peak_patch, torch.where(largest > 0, place, -1).int())

    edges, counts = histogram.edges, histogram.counts
    for latent in range(min(d_sae, 20)):
        value = values[..., latent][values[..., latent] > 0].float()
        bins = torch.bucketize(value, edges[1:-1], right=True)
        assert torch.equal(counts[latent], 2 * torch.bincount(bins, minlength=len(edges) - 1))
    assert counts.sum() == 2 * (values > 0).sum()


def test_bins_are_those_of_a_search_among_the_edges(way):
    # a value on an edge belongs to the bin above
    edges = ActivationHistogram(1).edges
    down, up = torch.tensor(0.0), torch.tensor(torch.inf)
    beyond = torch.tensor([1e-45, 1e-38, 3e38, torch.inf])
    values = [edges, edges.nextafter(down), edges.nextafter(up), beyond]
    value = torch.cat([*values, torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 3])
    histogram = ActivationHistogram(len(value))
    scan_tokens(value.view(1, 1, -1), torch.tensor([0]), 0.2, histogram)
    expected = torch.bucketize(value, edges[1:-1], right=True)
    assert torch.equal(histogram.counts.argmax(dim=1), expected)
    assert histogram.counts.sum(dim=1).eq(1).all()


def test_the_number_of_threads_changes_nothing():
    latents = torch.rand(4, 7, 500, generator=torch.Generator().manual_seed(0)).sub(0.8).relu()
    before = torch.get_num_threads()
    found = []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        found.append(scan_tokens(latents, torch.arange(7), 0.1, ActivationHistogram(500)))
    torch.set_num_threads(before)
    for name in ("total", "maximum", "n_active", "n_above", "peak_patch"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))
