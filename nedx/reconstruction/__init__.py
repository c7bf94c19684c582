"""Embeddings and latents to pixels: the diffusion prior, and generators as plug-ins."""
