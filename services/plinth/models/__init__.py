"""Plinth: models."""
