"""Plinth: trainer."""
