"""Plinth: inference."""
