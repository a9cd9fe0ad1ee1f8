"""The command line, called in this process."""

import vit_sae_cli


def vit_sae(*args):
    """Run a command; returns its exit status."""
    return vit_sae_cli.main([str(arg) for arg in args])
