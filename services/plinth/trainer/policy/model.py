"""The policy, its critic and its reference as functions of a batch of rollouts.

Rows are prompt + response, right-padded to T tokens; position t predicts token t + 1, and
`valid_bt` is True where that token belongs to the response. All [b, t] tensors are on that axis.
The value at position t is of the state in which token t + 1 is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plinth.algos.policy import entropy
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.reward import RewardModel
from plinth.trainer.policy.rollouts import Rollout


@dataclass(frozen=True)
class RolloutBatch:
    """Tensors of some rollouts."""

    ids_bt: Tensor
    valid_bt: Tensor
    sampler_bt: Tensor  # behaviour log-probabilities; 0 where not valid
    last_b: Tensor  # position of each row's last token
    longest_b: (
        Tensor  # tokens that each row might have come to have, which its sampler turned it by
    )

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], pad_id: int = 0) -> RolloutBatch:
        b = len(rollouts)
        t = max(len(r.prompt) + len(r.response) for r in rollouts)
        ids_bt = torch.full((b, t), pad_id, dtype=torch.int64)
        valid_bt = torch.zeros(b, t, dtype=torch.bool)
        sampler_bt = torch.zeros(b, t)
        for row, r in enumerate(rollouts):
            whole = torch.tensor(r.prompt + r.response)
            ids_bt[row, : len(whole)] = whole
            first, end = len(r.prompt) - 1, len(whole) - 1
            valid_bt[row, first:end] = True
            sampler_bt[row, first:end] = torch.tensor(r.logprobs)
        last_b = torch.tensor([len(r.prompt) + len(r.response) - 1 for r in rollouts])
        longest_b = torch.tensor([len(r.prompt) + r.max_tokens for r in rollouts])
        return cls(ids_bt, valid_bt, sampler_bt, last_b, longest_b)

    def rows(self, rows_b: Tensor) -> RolloutBatch:
        """Some of them, of the same width."""
        return RolloutBatch(*(part[rows_b] for part in self._parts()))

    def to(self, device: str) -> RolloutBatch:
        """The same on another device."""
        return RolloutBatch(*(part.to(device) for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.ids_bt, self.valid_bt, self.sampler_bt, self.last_b, self.longest_b


@dataclass(frozen=True)
class Outputs:
    """Per position, zero where not valid; and the value of the state after the last token."""

    logprobs_bt: Tensor
    entropy_bt: Tensor
    values_bt: Tensor | None = None
    value_after_b: Tensor | None = None


class Actor(nn.Module):
    """The policy with its critic.

    The critic is a value head on the policy's own body, beginning at zero, or (with `critic`) a
    reward model's body and head (Ouyang et al. 2022: the value function starts from the reward).
    """

    def __init__(self, policy: Decoder, *, value_head: bool, critic: RewardModel | None = None):
        super().__init__()
        self.policy, self.critic = policy, critic
        self.value: nn.Linear | None = None
        if value_head and critic is None:
            self.value = nn.Linear(policy.config.hidden, 1)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def forward(
        self, batch: RolloutBatch, temperature: float, *, with_entropy: bool = False
    ) -> Outputs:
        hidden_nd, backend = _hidden(self.policy, batch, batch.longest_b)
        rows_m = _rows(batch)
        picked_md = hidden_nd.index_select(0, rows_m)
        logits_mv = self.policy.logits(picked_md, backend).float() / temperature
        targets_m = batch.ids_bt.reshape(-1).index_select(0, rows_m + 1)
        logp_m = logits_mv.gather(1, targets_m[:, None])[:, 0] - logits_mv.logsumexp(-1)
        entropy_m = entropy(logits_mv) if with_entropy else torch.zeros_like(logp_m)
        logprobs_bt, entropy_bt = _spread(logp_m, rows_m, batch), _spread(entropy_m, rows_m, batch)
        values_n = self._values(batch, hidden_nd)
        if values_n is None:
            return Outputs(logprobs_bt, entropy_bt)
        values_bt = _spread(values_n.index_select(0, rows_m), rows_m, batch)
        after_b = values_n.view(batch.valid_bt.shape).gather(1, batch.last_b[:, None])[:, 0]
        return Outputs(logprobs_bt, entropy_bt, values_bt, after_b)

    def _values(self, batch: RolloutBatch, hidden_nd: Tensor) -> Tensor | None:
        """At every position, [n]."""
        if self.value is not None:
            values_n1: Tensor = self.value(hidden_nd)
            return values_n1.float()[:, 0]
        if self.critic is not None:
            critic_nd, backend = _hidden(self.critic, batch, batch.last_b + 1)
            return self.critic.scores(critic_nd, backend).float()
        return None


def logprobs(
    decoder: Decoder, rollouts: Sequence[Rollout], temperature: float, micro_batch: int
) -> Tensor:
    """log p of each response token under a model that only looks, [b, t]."""
    actor = Actor(decoder, value_head=False)
    batch = RolloutBatch.of(rollouts).to(str(next(decoder.parameters()).device))
    parts = []
    with torch.no_grad():
        for low in range(0, len(rollouts), micro_batch):
            rows_b = torch.arange(low, min(low + micro_batch, len(rollouts)))
            outputs: Outputs = actor(batch.rows(rows_b), temperature)
            parts.append(outputs.logprobs_bt)
    return torch.cat(parts)


def _hidden(decoder: Decoder, batch: RolloutBatch, lengths_b: Tensor) -> tuple[Tensor, SdpaBackend]:
    """lengths_b: by which each row turns."""
    b, t = batch.ids_bt.shape
    backend = SdpaBackend(b, t)
    positions_n = decoder.positions(lengths_b, t)
    return decoder(batch.ids_bt.reshape(-1), positions_n, backend), backend


def _rows(batch: RolloutBatch) -> Tensor:
    """Flat indices of the positions that predict a response token."""
    return batch.valid_bt.reshape(-1).nonzero().squeeze(1)


def _spread(values_m: Tensor, rows_m: Tensor, batch: RolloutBatch) -> Tensor:
    flat_n = values_m.new_zeros(batch.valid_bt.numel())
    return flat_n.index_copy(0, rows_m, values_m).view(batch.valid_bt.shape)
