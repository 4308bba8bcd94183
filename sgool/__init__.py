"""Saliency guided optimisation of diffusion latents (SGOOL, arXiv 2410.10257)."""

__version__ = "0.1.0"
