"""Plinth: cluster."""
