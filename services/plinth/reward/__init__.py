"""Plinth: reward."""
