"""Hugging Face's folders: config.json, its keys and rope rules, and the weights beside it."""
