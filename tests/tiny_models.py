"""Small random models for tests: real classes of the families we wrap, a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

OPEN_CLIP_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "head_width": 8,
    "layers": 2,
}
OPEN_CLIP_TEXT = {
    "context_length": 16,
    "vocab_size": 100,
    "width": 32,
    "heads": 4,
    "layers": 2,
}
TRANSFORMERS_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TRANSFORMERS_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "bos_token_id": 98,
    "eos_token_id": 99,
}
TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 1.5,
}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Build with a seed of its own; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _roughened(model: nn.Module) -> nn.Module:
    """Give constant norms, biases, LayerScales and tokens random values: they hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name and parameter.std(correction=0) < 0.05:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def tiny_open_clip(
    seed: int = 0, image_size: int = 32, patch_size: int = 8, layers: int = 3, width: int = 32
):
    """An ``open_clip.CLIP`` with heads of 8, 16 patches of 8x8 and an embedding of 24."""
    import open_clip

    vision = {"image_size": image_size, "patch_size": patch_size, "layers": layers, "width": width}
    with _seeded(seed):
        return open_clip.CLIP(
            embed_dim=24, vision_cfg={**OPEN_CLIP_VISION, **vision}, text_cfg=OPEN_CLIP_TEXT
        ).eval()


def tiny_open_clip_custom_text(seed: int = 0, **vision):
    """An ``open_clip.CustomTextCLIP`` with LayerScale; ``vision`` adds to its vision config."""
    import open_clip

    vision = {**OPEN_CLIP_VISION, "ls_init_value": 0.5, **vision}
    with _seeded(seed):
        return _roughened(
            open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=OPEN_CLIP_TEXT)
        )


def tiny_open_clip_own_attention(seed: int = 0):
    """open_clip's own attention module, with norms on queries, keys and the heads' outputs."""
    return tiny_open_clip_custom_text(
        seed, block_type="custom", qk_norm=True, scale_attn_inner=True, pool_type="avg"
    )


def tiny_open_clip_pooled_norm(seed: int = 0):
    """open_clip whose final norm sees the pooled token only, and no norm in front."""
    return tiny_open_clip_custom_text(
        seed, final_ln_after_pool=True, no_ln_pre=True, attentional_pool=False
    )


def tiny_open_clip_timm(seed: int = 0, proj: str = "linear"):
    """An ``open_clip.CustomTextCLIP`` around timm's ``test_vit`` (160x160 pixels, width 64)."""
    import open_clip

    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": proj}
    with _seeded(seed):
        return _roughened(
            open_clip.CustomTextCLIP(
                embed_dim=24, vision_cfg={**vision, "image_size": 160}, text_cfg=OPEN_CLIP_TEXT
            )
        )


def tiny_transformers_clip(seed: int = 0):
    """A transformers ``CLIPModel``."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=TRANSFORMERS_TEXT, vision_config=TRANSFORMERS_VISION, projection_dim=24
    )
    with _seeded(seed):
        return _roughened(CLIPModel(config))


def tiny_transformers_clip_vision(seed: int = 0):
    """A transformers ``CLIPVisionModel``."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with _seeded(seed):
        return _roughened(CLIPVisionModel(CLIPVisionConfig(**TRANSFORMERS_VISION)))


def tiny_transformers_clip_projection(seed: int = 0):
    """A transformers ``CLIPVisionModelWithProjection``."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**TRANSFORMERS_VISION, projection_dim=24)
    with _seeded(seed):
        return _roughened(CLIPVisionModelWithProjection(config))


def tiny_transformers_siglip(seed: int = 0):
    """A transformers ``SiglipModel``."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config=TRANSFORMERS_TEXT, vision_config=TRANSFORMERS_VISION)
    with _seeded(seed):
        return _roughened(SiglipModel(config))


def tiny_transformers_siglip_vision(seed: int = 0):
    """A transformers ``SiglipVisionModel``."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with _seeded(seed):
        return _roughened(SiglipVisionModel(SiglipVisionConfig(**TRANSFORMERS_VISION)))


def tiny_transformers_vit(seed: int = 0, add_pooling_layer: bool = True):
    """A transformers ``ViTModel``, with or without its pooler."""
    from transformers import ViTConfig, ViTModel

    with _seeded(seed):
        return _roughened(ViTModel(ViTConfig(**TRANSFORMERS_VISION), add_pooling_layer))


def tiny_transformers_vit_classifier(seed: int = 0):
    """A transformers ``ViTForImageClassification`` with 5 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    with _seeded(seed):
        return _roughened(ViTForImageClassification(ViTConfig(**TRANSFORMERS_VISION, num_labels=5)))


def tiny_transformers_dinov2(seed: int = 0, use_swiglu_ffn: bool = False):
    """A transformers ``Dinov2Model``."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(**TRANSFORMERS_VISION, mlp_ratio=2, use_swiglu_ffn=use_swiglu_ffn)
    with _seeded(seed):
        return _roughened(Dinov2Model(config))


def tiny_transformers_dinov2_registers(seed: int = 0):
    """A transformers ``Dinov2WithRegistersModel`` with 3 registers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**TRANSFORMERS_VISION, mlp_ratio=2, num_register_tokens=3)
    with _seeded(seed):
        return _roughened(Dinov2WithRegistersModel(config))


def tiny_transformers_dinov2_classifier(seed: int = 0):
    """A transformers ``Dinov2ForImageClassification`` with 5 classes."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(**TRANSFORMERS_VISION, mlp_ratio=2, num_labels=5)
    with _seeded(seed):
        return _roughened(Dinov2ForImageClassification(config))


def tiny_timm(seed: int = 0, **kwargs):
    """A timm ``VisionTransformer`` with 5 classes; ``kwargs`` go to its constructor."""
    from timm.models.vision_transformer import VisionTransformer

    with _seeded(seed):
        return _roughened(VisionTransformer(**{**TIMM, "num_classes": 5, **kwargs}))


def tiny_timm_registers(seed: int = 0):
    """timm with registers, positions on patches only, norms in attention, mean pooling."""
    return tiny_timm(
        seed,
        num_classes=0,
        reg_tokens=2,
        no_embed_class=True,
        qk_norm=True,
        scale_attn_norm=True,
        init_values=0.5,
        global_pool="avg",
    )


def tiny_timm_siglip(seed: int = 0):
    """timm without class token, with attention pooling, as SigLIP in timm."""
    return tiny_timm(seed, num_classes=0, class_token=False, global_pool="map")


def tiny_timm_clip(seed: int = 0):
    """timm with a norm in front of the blocks and images of other sizes, as CLIP in timm."""
    return tiny_timm(seed, pre_norm=True, dynamic_img_size=True)


def tiny_timm_distilled(seed: int = 0):
    """A distilled DeiT of timm, with two classifiers of 5 classes."""
    from timm.models.deit import VisionTransformerDistilled

    with _seeded(seed):
        return _roughened(VisionTransformerDistilled(**TIMM, num_classes=5))


def tiny_timm_eva02(seed: int = 0):
    """EVA02 in timm: rotary and learned positions, gated MLP with a norm, separate projections."""
    from timm.models.eva import Eva

    with _seeded(seed):
        return _roughened(
            Eva(
                **TIMM,
                num_classes=5,
                qkv_fused=False,
                swiglu_mlp=True,
                scale_mlp=True,
                scale_attn_inner=True,
                use_rot_pos_emb=True,
                ref_feat_shape=(4, 4),
            )
        )


def tiny_timm_dinov3(seed: int = 0):
    """DINOv3 in timm: rotary positions only, registers, biases added to one projection."""
    from timm.models.eva import Eva

    with _seeded(seed):
        return _roughened(
            Eva(
                **TIMM,
                num_classes=0,
                global_pool="token",
                init_values=0.5,
                num_reg_tokens=2,
                use_abs_pos_emb=False,
                use_rot_pos_emb=True,
                rope_type="dinov3",
                rope_temperature=100,
                rope_rotate_half=True,
                dynamic_img_size=True,
                use_fc_norm=False,
            )
        )


def tiny_timm_beit(seed: int = 0):
    """BEiT in timm: biases of relative position, LayerScale, mean pooling."""
    from timm.models.beit import Beit

    with _seeded(seed):
        return _roughened(Beit(**TIMM, num_classes=5, init_values=0.5, use_rel_pos_bias=True))


def tiny_timm_relpos(seed: int = 0):
    """timm with biases of relative position and no positions added; its class token has a bias of
    its own."""
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    with _seeded(seed):
        return _roughened(
            VisionTransformerRelPos(
                **TIMM,
                num_classes=5,
                global_pool="token",
                init_values=1.0,
                class_token=True,
                rel_pos_type="bias",
            )
        )


def tiny_transformers_dinov3(seed: int = 0, use_gated_mlp: bool = False):
    """A transformers ``DINOv3ViTModel`` with 2 registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        **TRANSFORMERS_VISION,
        num_register_tokens=2,
        use_gated_mlp=use_gated_mlp,
        layerscale_value=0.5,
    )
    with _seeded(seed):
        return _roughened(DINOv3ViTModel(config))


def tiny_transformers_beit(seed: int = 0, classes: int = 0):
    """A transformers BEiT with biases of relative position and mean pooling."""
    from transformers import BeitConfig, BeitForImageClassification, BeitModel

    config = BeitConfig(
        **TRANSFORMERS_VISION,
        vocab_size=10,
        layer_scale_init_value=0.5,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=classes > 0,
        use_mean_pooling=classes > 0,
        num_labels=classes or 2,
    )
    with _seeded(seed):
        return _roughened((BeitForImageClassification if classes else BeitModel)(config))


def tiny_transformers_deit(seed: int = 0, taught: bool = False):
    """A transformers ``DeiTModel``; ``taught``: with two classifiers of 5 classes."""
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTModel

    config = DeiTConfig(**TRANSFORMERS_VISION, num_labels=5)
    with _seeded(seed):
        return _roughened((DeiTForImageClassificationWithTeacher if taught else DeiTModel)(config))


def tiny_transformers_mae(seed: int = 0):
    """A transformers ``ViTMAEModel`` that masks nothing."""
    from transformers import ViTMAEConfig, ViTMAEModel

    with _seeded(seed):
        model = _roughened(ViTMAEModel(ViTMAEConfig(**TRANSFORMERS_VISION, mask_ratio=0.0)))
    # MAE's positions are not trained; tests want a gradient of everything.
    model.embeddings.position_embeddings.requires_grad_()
    return model


def tiny_torchvision(seed: int = 0):
    """A torchvision ``VisionTransformer`` with 5 classes."""
    from torchvision.models import VisionTransformer

    with _seeded(seed):
        return _roughened(
            VisionTransformer(
                image_size=32,
                patch_size=8,
                num_layers=2,
                num_heads=4,
                hidden_dim=32,
                mlp_dim=48,
                num_classes=5,
            )
        )


def tiny_open_clip_visual(seed: int = 0):
    """The ``visual`` of an open_clip model by itself."""
    return tiny_open_clip(seed).visual


def tiny_open_clip_coca(seed: int = 0):
    """An ``open_clip.CoCa``: attention pooling in front of the final norm."""
    import open_clip

    vision = {
        **OPEN_CLIP_VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 6,
        "output_tokens": True,
    }
    text = {**OPEN_CLIP_TEXT, "embed_cls": True, "output_tokens": True}
    multimodal = {**OPEN_CLIP_TEXT, "attn_pooler_heads": 4}
    with _seeded(seed):
        return _roughened(
            open_clip.CoCa(
                embed_dim=24, vision_cfg=vision, text_cfg=text, multimodal_cfg=multimodal
            )
        )


def tiny_open_clip_eva(seed: int = 0):
    """An ``open_clip.CustomTextCLIP`` around the EVA02 of ``tiny_timm_eva02``."""
    model = tiny_open_clip_timm(seed)
    trunk = tiny_timm_eva02(seed)
    trunk.reset_classifier(0)
    model.visual.trunk = trunk
    model.visual.head = nn.Sequential(nn.Linear(32, 24))
    return model.eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "open_clip": tiny_open_clip,
    "open_clip_custom_text": tiny_open_clip_custom_text,
    "open_clip_own_attention": tiny_open_clip_own_attention,
    "open_clip_pooled_norm": tiny_open_clip_pooled_norm,
    "open_clip_timm": tiny_open_clip_timm,
    "transformers_clip": tiny_transformers_clip,
    "transformers_clip_vision": tiny_transformers_clip_vision,
    "transformers_clip_projection": tiny_transformers_clip_projection,
    "transformers_siglip": tiny_transformers_siglip,
    "transformers_siglip_vision": tiny_transformers_siglip_vision,
    "transformers_vit": tiny_transformers_vit,
    "transformers_vit_classifier": tiny_transformers_vit_classifier,
    "transformers_dinov2": tiny_transformers_dinov2,
    "transformers_dinov2_gated": lambda: tiny_transformers_dinov2(use_swiglu_ffn=True),
    "transformers_dinov2_registers": tiny_transformers_dinov2_registers,
    "transformers_dinov2_classifier": tiny_transformers_dinov2_classifier,
    "timm": tiny_timm,
    "timm_registers": tiny_timm_registers,
    "timm_siglip": tiny_timm_siglip,
    "timm_clip": tiny_timm_clip,
    "timm_distilled": tiny_timm_distilled,
    "timm_eva02": tiny_timm_eva02,
    "timm_dinov3": tiny_timm_dinov3,
    "timm_beit": tiny_timm_beit,
    "timm_relpos": tiny_timm_relpos,
    "transformers_dinov3": tiny_transformers_dinov3,
    "transformers_dinov3_gated": lambda: tiny_transformers_dinov3(use_gated_mlp=True),
    "transformers_beit": tiny_transformers_beit,
    "transformers_beit_classifier": lambda: tiny_transformers_beit(classes=5),
    "transformers_deit": tiny_transformers_deit,
    "transformers_deit_taught": lambda: tiny_transformers_deit(taught=True),
    "transformers_mae": tiny_transformers_mae,
    "torchvision": tiny_torchvision,
    "open_clip_visual": tiny_open_clip_visual,
    "open_clip_coca": tiny_open_clip_coca,
    "open_clip_eva": tiny_open_clip_eva,
}
"""Every kind of tower that ``HookedViT`` recognises, by name."""
