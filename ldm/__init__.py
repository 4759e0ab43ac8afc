"""Motion-guided latent diffusion for video super-resolution."""

__version__ = "0.4.0"
