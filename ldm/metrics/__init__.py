"""Measures of restored frames, with and without the truth, frame by frame and pair by pair: no clip has to be held.

A frame is (3, H, W) float in [0, 1] or (H, W, 3) uint8, RGB. Every measure looks at 8-bit pixels, as they are stored.
"""
