"""The training loop: a library that needs torch, and neither Ray, Redis nor gRPC."""

from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.train import train

__all__ = ["Group", "TrainConfig", "train"]
