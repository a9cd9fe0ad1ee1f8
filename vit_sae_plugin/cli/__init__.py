"""What the commands of ``vit-sae`` do; their arguments are defined in ``vit_sae_cli.py``."""
