"""Ghost gradients do what they are for: on known directions, far fewer latents stay dead."""

from __future__ import annotations

from statistics import mean

from benchmarks.dead_latents import D_IN, D_SAE, train
from vit_sae_plugin.saes import PatchTrainingSAEConfig

FRESH_SEEDS = range(200, 208)
"""None of them had been looked at when the bounds below were set, by seeds 100 to 123: there the
share of dead latents falls to 0.26 of what it is without (95 % bootstrap interval of the mean 0.22
to 0.30; of a single seed 0.09 to 0.50), and explained variance rises by 0.013 (0.008 to 0.019; of a
single seed -0.008 to 0.052, and it rises for 19 of 24)."""


def test_three_fifths_of_dead_latents_live_and_reconstruction_is_better():
    settings = {"d_in": D_IN, "d_sae": D_SAE, "l1_coefficient": 0.008}
    dead, gains = [], []
    # At this learning rate a run's last bits decide which latents live: a single seed's explained
    # variance moves by 0.01 when rounding changes. So only means are judged.
    for seed in FRESH_SEEDS:
        without, ghost = (
            train(
                PatchTrainingSAEConfig(**settings, use_ghost_grads=use), seed, lr=0.04, n_steps=150
            )
            for use in (False, True)
        )
        assert ghost.dead_share < without.dead_share
        dead.append(ghost.dead_share / without.dead_share)
        gains.append(ghost.explained_variance - without.explained_variance)
    assert mean(dead) < 0.4
    assert mean(gains) > 0
