"""Benchmarks: test sets, restoration, scores, and tables that compare scores with published ones.

Built on `ldm.metrics` and `ldm.engine`; the degradation is an argument.
"""
