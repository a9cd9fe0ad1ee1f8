"""Which device a command runs on."""

from __future__ import annotations


def chosen_device(name: str | None) -> str:
    """The device asked for, or the best this machine has.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    from vit_sae_plugin.devices import best_device, device_of_rank

    if name is not None:
        name = device_of_rank(name)
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device {name!r} can't be used here ({reason}); want cpu, or one that this "
                "machine has, such as cuda, cuda:1 or mps"
            ) from None
        return name
    return best_device()
