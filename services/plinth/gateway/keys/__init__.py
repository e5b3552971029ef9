"""API keys: what is kept of them, who calls by one, and what an administrator does with them."""
