"""Plinth: the base that a language model stands on."""
