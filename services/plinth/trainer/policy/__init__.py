"""Learning from a policy's own samples: PPO, GRPO, RLOO. A library: torch and the engine, no more.

`loop.optimise` is the whole path: sample → score → advantages → clipped updates → new weights.
"""
