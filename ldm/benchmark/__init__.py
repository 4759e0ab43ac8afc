"""Test sets and their tables: layouts, clips, restored frames, scores beside published ones.

Uses the metrics (`ldm.metrics`) and the engine (`ldm.engine`); the degradation is an argument.
"""
