"""How long a test waits for what must come."""

# Spent whole only by a test that fails. Workers and other processes share the cores, so that no
# promise about durations is in it: what must be soon is told from what must not by a condition.
PATIENCE_S = 120.0
