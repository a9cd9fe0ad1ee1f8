"""One small file for each project whose SAEs can be read.

A kind is a module with a ``FORMAT``. A new kind is a new file here and its name in ``KINDS``.
"""

KINDS = (
    "patchsae",
    "msae",
    "prisma",
    "saev",
    "clipscope",
    "overcomplete",
    "dictionary_learning",
    "sae_for_vlm",
    "dn_cbm",
    "sparsify",
    "visaebench",
)
"""The kinds of files that can be read, each the name of its file here, imported on use."""
