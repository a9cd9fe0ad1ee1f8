"""Where rows come from: tokens of a kind, at any hook, described so that it can be rebuilt."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.fingerprints import model_fingerprint
from vit_sae_plugin.hooked_vit import HookedViT


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_module(tiny_open_clip(), preprocess=_to_pixels)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _to_pixels(image):
    raise AssertionError("not used here")


@pytest.mark.parametrize(
    ("seqpos_slice", "kind", "left"),
    [
        ((None,), "all", (None,)),
        ((1, None), "patches", (None,)),
        ((None, 1), "cls", (None,)),
        ((0, 1), "cls", (None,)),
        ((5, -5), "all", (5, -5)),
    ],
)
def test_saelens_slices_become_token_kinds(model, pixels, seqpos_slice, kind, left) -> None:
    hook = "blocks.1.hook_resid_post"
    source = ActivationSource.from_model(model, hook, "all", seqpos_slice)
    assert (source.token_kind, source.seqpos_slice) == (kind, left)
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels)
    assert torch.equal(source.activations(model, pixels), cache[hook][:, slice(*seqpos_slice)])


@pytest.mark.parametrize(
    "hook_name",
    [
        "hook_full_embed",
        "blocks.0.hook_resid_pre",
        "blocks.2.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        "blocks.1.mlp.hook_post",
        "blocks.1.attn.hook_z",
        "blocks.2.hook_resid_post",
        "ln_final.hook_normalized",
        "hook_image_embed",
    ],
)
def test_any_hook_gives_its_own_value(model, pixels, hook_name) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter=hook_name)
    expected = cache[hook_name]
    expected = expected[:, None] if expected.ndim == 2 else expected.flatten(2)
    source = ActivationSource.from_model(model, hook_name)
    acts = source.activations(model, pixels)
    assert torch.equal(acts, expected)
    assert acts.shape[-1] == model.hook_width(hook_name)


@pytest.mark.parametrize(
    ("hook_name", "n_blocks_run"),
    [
        ("hook_full_embed", 0),
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.2.hook_resid_pre", 2),
        ("blocks.1.attn.hook_z", 2),
        ("hook_image_embed", 3),
    ],
)
def test_only_the_blocks_needed_run_and_never_the_text_tower(
    model, pixels, hook_name, n_blocks_run
) -> None:
    ran: list[str] = []
    bare = model.bare_model
    watched = {f"block {i}": block for i, block in enumerate(bare.visual.transformer.resblocks)}
    watched["text"] = bare.transformer
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in watched.items()
    ]
    ActivationSource.from_model(model, hook_name).activations(model, pixels)
    for handle in handles:
        handle.remove()
    assert ran == [f"block {i}" for i in range(n_blocks_run)]


def test_hooks_without_a_vector_for_each_token_are_refused(model, pixels) -> None:
    with pytest.raises(ValueError, match="want vectors of one width"):
        ActivationSource.from_model(model, "blocks.0.attn.hook_pattern")
    with pytest.raises(ValueError, match=r"near names: .*hook_resid_post"):
        ActivationSource.from_model(model, "blocks.1.hook_resid_pots")
    with pytest.raises(ValueError, match="hook_image_embed has one vector for each image"):
        ActivationSource.from_model(model, "hook_image_embed", "patches")


def test_metadata_survive_json_and_rebuild_the_source(model) -> None:
    source = ActivationSource.from_model(model, "blocks.1.hook_resid_post", "patches")
    metadata = source.to_metadata()
    assert metadata["model_class_name"] == "HookedViT"
    assert (metadata["grid"], metadata["n_tokens"], metadata["n_prefix_tokens"]) == ([4, 4], 17, 1)
    saved = SAEMetadata(**json.loads(json.dumps(metadata)))
    assert ActivationSource.from_metadata(saved) == source


def test_a_model_passed_as_an_object_must_be_passed_again(model) -> None:
    source = ActivationSource.from_model(model, "blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match=r"pass that model as model=HookedViT.from_module"):
        source.load_model()


def test_a_named_model_is_loaded_again() -> None:
    model = HookedViT.from_pretrained("shapes-clip")
    source = ActivationSource.from_model(model, "blocks.1.hook_resid_post")
    rebuilt = ActivationSource.from_metadata(source.to_metadata()).load_model()
    pixels = torch.randn(2, 3, *model.cfg.image_size)
    torch.testing.assert_close(
        source.activations(model, pixels), source.activations(rebuilt, pixels)
    )


def test_another_model_is_refused_and_other_preprocessing_warned_of(model) -> None:
    source = ActivationSource.from_model(model, "blocks.1.hook_resid_post")
    finer = HookedViT.from_module(tiny_open_clip(patch_size=4), preprocess=_to_pixels)
    with pytest.raises(ValueError, match=r"has 1 prefix tokens, grid \[8, 8\] .* want 1, \[4, 4\]"):
        source.check_model(finer)
    other = HookedViT.from_module(tiny_open_clip(), preprocess=str)
    with pytest.warns(UserWarning, match="preprocessed by"):
        source.check_model(other)


def test_saes_of_other_models_are_refused() -> None:
    metadata = SAEMetadata(model_class_name="HookedTransformer", hook_name="blocks.0.hook_mlp_out")
    with pytest.raises(ValueError, match=r"'HookedTransformer'.*want one trained on a 'Hook"):
        ActivationSource.from_metadata(metadata)


def test_an_sae_is_tied_to_its_model_s_weights(model) -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=8, k=2))
    ActivationSource.from_model(model, "blocks.0.hook_resid_post").stamp(sae, model)
    stamped = json.loads(json.dumps(sae.cfg.metadata.to_dict()))
    assert stamped["model_sha256"] == model_fingerprint(model)
    assert stamped["model_weights"] == "unknown weights"
    source = ActivationSource.from_metadata(stamped)
    with warnings.catch_warnings(action="error"):
        source.check_model(model)
        source.check_model(HookedViT.from_module(tiny_open_clip(), preprocess=_to_pixels))
    other = HookedViT.from_module(tiny_open_clip(seed=1), preprocess=_to_pixels)
    other.model_name, other.has_pretrained_weights = "ViT-B-17", False
    other.from_pretrained_kwargs = {"pretrained": False}
    ours, theirs = model_fingerprint(model)[:8], model_fingerprint(other)[:8]
    message = rf"an object \[{ours}\], but this model is ViT-B-17 \(random weights\) \[{theirs}\]"
    with pytest.warns(UserWarning, match=message):
        source.check_model(other)
    with torch.no_grad():  # the same object, changed
        next(model.bare_model.parameters()).mul_(2.0)
    try:
        with pytest.warns(UserWarning, match="other weights"):
            source.check_model(model)
    finally:
        with torch.no_grad():
            next(model.bare_model.parameters()).div_(2.0)


@pytest.mark.parametrize(
    ("name", "settings", "weights", "words"),
    [
        ("ViT-B-16", {"pretrained": "openai"}, "openai weights", "ViT-B-16 (openai weights)"),
        ("ViT-B-16", {"pretrained": False}, None, "ViT-B-16 (random weights)"),
        ("ViT-B-16", {}, None, "ViT-B-16 (random weights)"),  # as earlier releases loaded it
        ("shapes-clip", {}, None, "shapes-clip (pretrained weights)"),
        (None, {}, "unknown weights", "a model passed as an object"),
    ],
)
def test_a_model_in_words(name, settings, weights, words) -> None:
    source = ActivationSource(
        "hook_image_embed",
        model_name=name,
        model_from_pretrained_kwargs=settings,
        model_weights=weights,
    )
    assert source.describe_model() == words


def test_metadata_that_name_no_tokens_are_no_guess() -> None:
    metadata = {"model_class_name": "HookedViT", "hook_name": "blocks.1.hook_resid_post"}
    assert ActivationSource.from_metadata(metadata).token_kind == "all"  # as SAELens's have it
    with pytest.raises(ValueError, match="not which tokens it reads; set"):
        ActivationSource.from_metadata(metadata | {"token_kind": None})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hook_name", 3),
        ("token_kind", ["all"]),
        ("seqpos_slice", True),
        ("seqpos_slice", ["a"]),
        ("model_from_pretrained_kwargs", [1]),
        ("grid", "8x8"),
        ("n_tokens", 2.5),
        ("input_scaling", "1"),
        ("input_scaling", 0.0),
        ("input_scaling", float("nan")),
    ],
)
def test_metadata_of_the_wrong_kind_are_told(name, value):
    metadata = {"model_class_name": "HookedViT", "hook_name": "blocks.0.hook_resid_post"}
    ActivationSource.from_metadata(metadata)
    with pytest.raises(ValueError, match=rf"metadata: .*{name} is"):
        ActivationSource.from_metadata({**metadata, name: value})
