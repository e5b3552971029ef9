"""Plinth: shared."""
