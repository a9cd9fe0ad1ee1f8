"""One small file for each project whose SAEs can be read."""
