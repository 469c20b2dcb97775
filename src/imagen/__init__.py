"""Imagen Lab: cascaded text-to-image diffusion, open to ablation by one Hydra override."""
