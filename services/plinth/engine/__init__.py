"""Plinth: engine."""
