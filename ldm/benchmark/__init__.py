"""A test set from a folder to tables: its layout, its clips, what is made of them, their scores beside published ones.

Below it stand the measures (`ldm.metrics`) and the engine that restores (`ldm.engine`); degradations are handed in.
"""
