"""What stages say to one another; no client reaches it."""
