"""Full-reference and no-reference metrics of restored clips, computed frame by frame; no clip is held in memory.

A frame is (3, H, W) float in [0, 1] or (H, W, 3) uint8, RGB. Every metric is computed on 8-bit pixels. `truth` is the
ground truth.
"""
