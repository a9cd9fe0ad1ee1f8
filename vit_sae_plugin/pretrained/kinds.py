"""The kinds of files that can be read."""

from __future__ import annotations

from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.formats import (
    clipscope,
    dictionary_learning,
    dn_cbm,
    msae,
    overcomplete,
    patchsae,
    prisma,
    sae_for_vlm,
    saev,
    sparsify,
    visaebench,
)

FORMATS: dict[str, Format] = {
    module.FORMAT.kind: module.FORMAT
    for module in (
        patchsae,
        msae,
        prisma,
        saev,
        clipscope,
        overcomplete,
        dictionary_learning,
        sae_for_vlm,
        dn_cbm,
        sparsify,
        visaebench,
    )
}
