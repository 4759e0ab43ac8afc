"""Weight files: reading without executing code, and strict loading into networks."""
