"""Plinth: gateway."""
