"""What latents mean, in words, and what one does with that."""
