"""Plinth: prompting."""
