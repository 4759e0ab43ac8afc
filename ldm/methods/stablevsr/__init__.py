"""StableVSR: texture guidance and frame-wise bidirectional sampling (Rota et al., ECCV 2024)."""
