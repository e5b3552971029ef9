"""The trainer stage: every gradient step, and the data for it."""
