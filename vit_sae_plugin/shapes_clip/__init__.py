"""``shapes-clip``: a small CLIP trained on shape scenes, in open_clip's ``local-dir:`` format.

A vision transformer of 4 blocks and width 128 on 64 × 64 pixels in patches of 8 (one class token
and 64 patch tokens), a text transformer of 2 blocks, and a word-level tokenizer. The weights are
stored in half precision and loaded into float32. ``scripts/train_shapes_clip.py`` in the
repository made them; it says how, and which loss made the patch tokens speak of the objects.

``HookedViT.from_pretrained("shapes-clip")`` loads it.
"""

SHAPES_CLIP_HOOK = "blocks.2.hook_resid_post"
"""Where SAEs are trained on it: the third of its four blocks, whose patches know their objects."""
