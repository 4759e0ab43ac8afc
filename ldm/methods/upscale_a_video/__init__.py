"""Upscale-A-Video: the SD x4 upscaler with layers over time, a text, and latents propagated along the flow (2024)."""
