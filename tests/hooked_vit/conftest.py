"""Every family once: the bare model, the hooked one around it, and a batch of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_models import FAMILIES
from vit_sae_plugin.hooked_vit import HookedViT


@dataclass(frozen=True)
class Case:
    family: str
    bare: nn.Module
    hooked: HookedViT
    pixels: Tensor


@cache
def build_case(family: str) -> Case:
    bare = FAMILIES[family]()
    hooked = HookedViT.from_module(bare)
    generator = torch.Generator().manual_seed(1)
    return Case(
        family, bare, hooked, torch.randn(2, 3, *hooked.cfg.image_size, generator=generator)
    )


@pytest.fixture(params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest) -> Case:
    """A family; models are built once, so tests leave them as they were."""
    return build_case(request.param)


@pytest.fixture
def open_clip_case() -> Case:
    """The family to test what does not depend on the family."""
    return build_case("open_clip")
