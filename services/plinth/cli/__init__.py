"""Plinth: cli."""
