"""Plinth: coordinator."""
