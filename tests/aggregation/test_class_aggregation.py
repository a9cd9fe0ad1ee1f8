"""Images to classes and to the data set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_sae_plugin.aggregation import make_class_aggregation

IMAGES = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 0.0], [7.0, 1.0]])
LABELS = torch.tensor([0, 0, 2, -1])


@pytest.mark.parametrize("sparse", [False, True])
def test_sums_worked_by_hand(sparse):
    images = IMAGES.to_sparse() if sparse else IMAGES
    total = make_class_aggregation("sum", n_classes=3, d_sae=2)
    assert total(images, LABELS).tolist() == [[4, 2], [0, 0], [5, 0]]
    assert total.compute_dataset().tolist() == [16, 3]


def test_means_worked_by_hand():
    mean = make_class_aggregation("mean", n_classes=3, d_sae=2)
    rows = mean(IMAGES, LABELS)
    assert rows[[0, 2]].tolist() == [[2, 1], [5, 0]]
    assert rows[1].isnan().all()  # no image of this class
    assert mean.compute_dataset().tolist() == [4, 0.75]  # over images, not over classes


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), batch_size=st.integers(1, 9), name=st.sampled_from(["sum", "mean"])
)
def test_order_and_batches_do_not_show(seed, batch_size, name):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(9, 4, generator=generator) * 10
    labels = torch.randint(-1, 3, (9,), generator=generator)
    whole = make_class_aggregation(name, n_classes=3, d_sae=4)
    expected = whole(images, labels)
    order = torch.randperm(9, generator=generator)
    streamed = make_class_aggregation(name, n_classes=3, d_sae=4)
    for some in order.split(batch_size):
        streamed.update(images[some], labels[some])
    torch.testing.assert_close(streamed.compute(), expected, rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(
        streamed.compute_dataset(), whole.compute_dataset(), rtol=1e-12, atol=0
    )


def test_state_is_saved_with_the_module():
    total = make_class_aggregation("sum", n_classes=3, d_sae=2)
    total.update(IMAGES, LABELS)
    again = make_class_aggregation("sum", n_classes=3, d_sae=2)
    again.load_state_dict(total.state_dict())
    assert torch.equal(again.compute(), total.compute())


def test_labels_out_of_range_are_refused():
    total = make_class_aggregation("sum", n_classes=2, d_sae=2)
    with pytest.raises(ValueError, match="labels run from -1 to 2; want -1"):
        total.update(IMAGES, LABELS)
    with pytest.raises(ValueError, match="got 4 images and 3 labels"):
        total.update(IMAGES, LABELS[:3])
    with pytest.raises(ValueError, match="no class-level aggregation is called 'max'"):
        make_class_aggregation("max", n_classes=2, d_sae=2)
