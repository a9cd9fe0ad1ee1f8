"""A resumed run must be the same run: same settings, same model, same images."""

from __future__ import annotations

from typing import Any

from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig

MAY_CHANGE = frozenset(
    "device model_device act_store_device sae.device n_workers dataset_path output_path "
    "checkpoint_path checkpoint_every_minutes n_checkpoints resume_from_checkpoint "
    "n_latent_shards log_every_n_steps logger verbose eval_every_n_steps eval_dataset_path "
    "n_eval_images n_batches_for_norm_estimate".split()
)
"""Settings that don't alter the result of what is left of a run (images are compared by their
fingerprint; a scale is estimated before the first step)."""


def settings_that_count(config: ViTSAERunnerConfig) -> dict[str, Any]:
    """The settings that alter a run's result, by name, as plain values; kept in checkpoints."""
    values = config.to_dict()
    values |= {f"sae.{name}": value for name, value in values.pop("sae").items()}
    return {name: value for name, value in values.items() if name not in MAY_CHANGE}


def check_same_settings(run: dict[str, Any], now: ViTSAERunnerConfig) -> None:
    """Raise a ValueError naming the settings that would alter the result of the run.

    A run with a constant learning rate may be made longer or shorter: what is behind it would have
    been the same.

    Args:
        run: the settings that count, as a checkpoint has them.
        now: the settings that the run should go on with.
    """
    after = settings_that_count(now)
    may_change = set(MAY_CHANGE)  # an earlier release may have kept more of them
    if run.get("lr_scheduler_name") == "constant" and run.get("lr_decay_steps") == 0:
        may_change.add("training_tokens")
    _refuse(
        {
            name: (run.get(name), after.get(name))
            for name in {**run, **after}
            # an earlier release didn't have every setting, and trained as without it
            if name not in may_change and run.get(name, after.get(name)) != after.get(name)
        },
        "settings",
        "want the same, or another output_path for a new run (what may change: "
        f"{', '.join(sorted(MAY_CHANGE - {'resume_from_checkpoint'}))}, and training_tokens of a "
        "run whose learning rate is constant)",
    )


def check_same_input(run: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError unless a run's model and images are those it began with.

    Args:
        run: what a checkpoint says of them.
        now: what the runner would put into one.
    """
    before, after = _flat(run), _flat(now)
    _refuse(
        {
            name: (before[name], after[name])
            for name in before.keys() & after.keys()
            if before[name] != after[name]
        },
        "model or images",
        "want those that the run began with",
    )


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """The model's description entry by entry: later releases say more of it."""
    model = state.get("model", {})
    return {**state, "model": None, **{f"model.{name}": value for name, value in model.items()}}


def _refuse(differing: dict[str, tuple[Any, Any]], what: str, wanted: str) -> None:
    if differing:
        listed = "; ".join(
            f"{name}: {before!r} in the run, {after!r} now"
            for name, (before, after) in sorted(differing.items())
        )
        raise ValueError(f"can't resume with other {what} ({listed}); {wanted}")
