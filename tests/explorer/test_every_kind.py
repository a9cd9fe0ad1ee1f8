"""The explorer's functions on each kind of SAE that the package trains: without a browser."""

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig, Transcoder, TranscoderConfig

from tests.explorer.conftest import HOOK, Counter, shapes_sae
from vit_sae_plugin import HookedViT, PatchAggregatedSAE
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.attached_sae import add, in_order, scale
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.explorer import Visit, open_explorer
from vit_sae_plugin.explorer.actions import act
from vit_sae_plugin.explorer.views import answer_view, latents_view, picture_view
from vit_sae_plugin.saes import (
    MatryoshkaTopKSAE,
    MatryoshkaTopKSAEConfig,
    PatchSAE,
    PatchSAEConfig,
)

FEW = "red star, blue ring, green heart"
POOLED = "hook_image_embed"
MLP_IN, MLP_OUT = "blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out"
N_BELOW = {"transcoder": 2, "matryoshka_topk of pooled": 4}
"""Blocks below the SAE, of four; of the others the first three."""


@pytest.fixture(scope="module")
def counted(clip) -> tuple[HookedViT, Counter]:
    """A model whose blocks are counted as they run."""
    model = HookedViT.from_pretrained("shapes-clip")
    return model, Counter(model)


def _make(kind: str, model: HookedViT) -> SAE:
    """Random directions, decoded as strongly as they are read."""
    hook = {"transcoder": MLP_IN, "matryoshka_topk of pooled": POOLED}.get(kind, HOOK)
    width = model.hook_width(hook)
    sizes = {"d_in": width, "d_sae": 64}
    if kind == "patch_aggregated":
        return PatchAggregatedSAE.from_sae(shapes_sae(model), "count")
    if kind == "patchsae":
        sae = PatchSAE(PatchSAEConfig(**sizes))
    elif kind == "topk":
        sae = TopKSAE(TopKSAEConfig(**sizes, k=4))
    elif kind == "transcoder":
        cfg = TranscoderConfig(**sizes, d_out=model.cfg.d_model, apply_b_dec_to_input=False)
        sae = Transcoder(cfg)
    else:
        sae = MatryoshkaTopKSAE(MatryoshkaTopKSAEConfig(**sizes, k=8))
    directions = torch.randn(64, width, generator=torch.Generator().manual_seed(5))
    directions /= directions.norm(dim=1, keepdim=True)
    sae.W_enc.data, sae.W_dec.data = directions.T.contiguous(), directions * 3
    if kind in ("patchsae", "transcoder"):
        sae.b_enc.data = torch.full((64,), -1.0)
    for key, value in ActivationSource.from_model(model, hook, "all").to_metadata().items():
        sae.cfg.metadata[key] = value
    if kind == "transcoder":
        sae.cfg.metadata.hook_name_out = MLP_OUT
    return sae


@pytest.fixture(
    scope="module",
    params=[
        "patchsae",
        "topk",
        "matryoshka_topk",
        "matryoshka_topk of pooled",
        "transcoder",
        "patch_aggregated",
    ],
)
def kind(request) -> str:
    return request.param


def test_its_latents_are_listed_multiplied_and_added(kind, counted):
    model, counter = counted
    scenes = ShapeScenes(6, split="test", n_objects=1)
    explorer = open_explorer(
        model, _make(kind, model), scenes, n_reference_images=6, progress=False
    )
    attached = explorer.attached
    pixels = model.preprocess(scenes.record(2).load())[None]
    with torch.no_grad():
        strengths = attached.latents(pixels)[0].amax(dim=0)
    visit = Visit(explorer, {"image": "2", "classes": FEW})
    visit.predictions()  # reads the class names, for all pictures
    counts = list(counter.counts)
    listed = [one.latent for one in visit.listed()]
    n = min(12, int((strengths > 0).sum()))
    assert listed == strengths.topk(n).indices.tolist()
    assert all(one.added is None for one in visit.listed())

    first, silent = listed[0], int((strengths == 0).nonzero()[-1])
    said = (
        {"kind": "find", "words": str(silent)},
        {"kind": "factor", "latent": first, "factor": 2.5},
        {"kind": "add", "latent": silent, "factor": 1.5},
        {"kind": "rank", "ranking": "answer"},
    )
    for one in said:
        assert act(visit, one)
        assert not visit.notices
        assert visit.predictions()["plain"].answers
        assert visit.listed()
    likeness = visit.likeness()["plain"]
    n_below = N_BELOW.get(kind, 3)
    assert counter.counts[:n_below] == counts[:n_below], "layers below run once an image"
    assert "Undo 2 changes" in answer_view(visit)
    assert "Take out" in latents_view(visit)
    assert "the picture" in picture_view(visit)

    amount = 1.5 * explorer.usual_strength(silent)
    edit = in_order(scale([first], 2.5), add([silent], amount))
    with torch.no_grad():
        plain, spliced = model(pixels), attached.splice(pixels, edit, use_error_term=True)
    expected = torch.nn.functional.cosine_similarity(plain, spliced).item()
    assert likeness == pytest.approx(expected, rel=1e-5)
    assert likeness < 0.9999
    found = next(one for one in visit.listed() if one.latent == silent)
    assert (found.added, found.factor) == (1.5, 1.0)

    if kind == "matryoshka_topk of pooled":
        with pytest.raises(ValueError, match="reads no patches; there is nothing to choose"):
            visit.choose_patch(1, 2)
    else:
        visit.choose_patch(1, 2)
    visit.undo_changes()
    assert visit.state.n_changes == 0
    assert visit.likeness()["plain"] == pytest.approx(1, abs=1e-6)


def test_a_latent_is_added_by_its_usual_strength(clip):
    sae, seen, unseen = shapes_sae(clip), 3, 7
    sae.b_enc.data[unseen] = -100
    scenes = ShapeScenes(4, split="test", n_objects=1)
    explorer = open_explorer(clip, sae, scenes, n_reference_images=4, progress=False)
    means = explorer.atlas.latents["mean_activation"]
    assert explorer.usual_strength(seen) == means[seen] > 0
    assert explorer.usual_strength(unseen) == means.drop(unseen).median() > 0
    visit = Visit(explorer, {"image": "1", "add": f"{unseen}x2"})
    assert visit.state.to_query().endswith(f"add={unseen}x2")
    (found,) = [one for one in visit.listed() if one.latent == unseen]
    assert found.added == 2
    for latent, times, wanted in ((64, 1, "0 to 63"), (0, 5, "0 to 4"), (0, None, "0 to 4")):
        assert act(visit, {"kind": "add", "latent": latent, "factor": times}) == frozenset()
        assert wanted in visit.notices[0]
    visit.add_latent(unseen, 0)
    assert visit.state.n_changes == 0
