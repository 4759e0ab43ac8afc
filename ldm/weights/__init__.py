"""Weight files: read without running code from them, and loaded strictly into networks."""
