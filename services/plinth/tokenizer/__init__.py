"""Plinth: tokenizer."""
