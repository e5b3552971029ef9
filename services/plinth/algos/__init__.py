"""Plinth: algos."""
