"""Frames flow through stages in bounded memory."""
