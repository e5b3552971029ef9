"""Plinth: kernels."""
