"""Rewards of answers by a reward model: its score at each answer's last token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from plinth.kernels.training import SdpaBackend
from plinth.models.reward import load_reward_model
from plinth.trainer.policy.model import RolloutBatch
from plinth.trainer.policy.rollouts import Rollout


class Judge:
    """A reward model that only looks."""

    def __init__(self, folder: Path, micro_batch: int, device: str = "cpu") -> None:
        self._model = load_reward_model(folder).to(device).eval()
        self._micro, self._device = micro_batch, device

    def begin(self, group: Sequence[Rollout]) -> None:
        """Nothing: a whole batch at a time is dearer to wait for and cheaper to do."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        scores: list[float] = []
        with torch.no_grad():
            for low in range(0, len(rollouts), self._micro):
                batch = RolloutBatch.of(rollouts[low : low + self._micro]).to(self._device)
                b, t = batch.ids_bt.shape
                backend = SdpaBackend(b, t)
                positions_n = self._model.positions(batch.last_b + 1, t)
                rows_b = torch.arange(b, device=self._device) * t + batch.last_b
                hidden_bd = self._model(batch.ids_bt.reshape(-1), positions_n, backend, rows_b)
                scores += self._model.scores(hidden_bd, backend).tolist()
        return scores
