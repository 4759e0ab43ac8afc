"""Pipelines of stages that process videos in bounded memory."""
