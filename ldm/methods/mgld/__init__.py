"""MGLD-VSR: motion-guided latent diffusion for video super-resolution (Yang et al., ECCV 2024)."""
