"""The decoder, once: what is trained is what is served.

It is made of the parts that a `ModelConfig` chooses, under the names that its family gives them:
`Decoder.state_dict()` carries Hugging Face's names; the only difference is GPT-2's maps, which are
[out, in] here and [in, out] in a checkpoint (`models.weights` turns them). Tokens lie on one
flat axis: how they group into sequences is the backend's knowledge.

Legend: n rows, d width, h heads, k KV heads, e head width, i width within an MLP.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.kernels.backend import Backend, LinearWeights, LowRank
from plinth.kernels.specs import StateSpec
from plinth.models.config import ModelConfig
from plinth.models.families import names_of
from plinth.models.layer import Layer, placed
from plinth.models.layers import Linear, Norm, RopeTables
from plinth.shared.errors import InvalidArgument


class _TiedHead:
    """The embedding table, seen as the output map [vocab, d]."""

    bias: Tensor | None = None
    adapter: LowRank | None = None

    def __init__(self, embedding: nn.Embedding) -> None:
        self._embedding = embedding

    @property
    def weight(self) -> Tensor:
        return self._embedding.weight


class Decoder(nn.Module):
    """A causal language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Of the files that it was opened from, by tensor; it is saved in them again (`dtypes`).
        self.stored_dtypes: dict[str, torch.dtype] = {}
        names = names_of(config.family)
        self._names = names
        # In order; as what is no module, or each would have a second name.
        self.layers = tuple(
            Layer(config, names, number, kind) for number, kind in enumerate(config.kinds)
        )
        self._tables = [nn.Embedding(config.vocab_size, config.hidden)]
        placed(self, names.embedding, self._tables[0])
        if config.learned_positions:
            if not names.positions:
                raise InvalidArgument(
                    f"model config: learned_positions is True, for which {config.family!r} has no "
                    "table",
                    field="learned_positions",
                )
            self._tables.append(nn.Embedding(config.context, config.hidden))
            placed(self, names.positions, self._tables[1])
        placed(self, names.layer.removesuffix(".{}"), nn.ModuleList(self.layers))
        self._norms = [Norm.of(config, config.hidden)]
        placed(self, names.last_norm, self._norms[0])
        self._heads: list[LinearWeights] = [_TiedHead(self.embedding)]
        if not config.tie_embeddings:
            head = Linear(config.hidden, config.vocab_size, bias=False)
            self._heads = [head]
            placed(self, names.head, head)
        self.ropes = nn.ModuleList(RopeTables(rope, config) for rope in config.ropes)

    @property
    def embedding(self) -> nn.Embedding:
        """The token table [vocab, d]."""
        return self._tables[0]

    @property
    def head(self) -> LinearWeights:
        """The output map: its own, or the token table."""
        return self._heads[0]

    @property
    def states(self) -> list[StateSpec]:
        """What each layer keeps."""
        return [layer.spec.state for layer in self.layers]

    def forward(
        self,
        ids_n: Tensor,
        positions_n: Tensor,
        backend: Backend,
        rows_m: Tensor | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [n, d] after the final norm. `ids_n` and `positions_n` are int64; to the
        positions of a sequence belongs `ModelConfig.rope_offset`.

        rows_m: the rows that are wanted, [m, d] then; the last layer does no more for the others
        than let them be attended to. router_logits: a list that takes, of each layer with experts,
        its router's logits [n, experts], of the last layer for those rows alone.
        """
        config = self.config
        x_nd = F.embedding(ids_n, self.embedding.weight)
        if config.embedding_scale != 1.0:
            x_nd = x_nd * config.embedding_scale
        if config.learned_positions:
            x_nd = x_nd + F.embedding(positions_n, self._tables[1].weight)
        for layer in self.layers:
            wanted = rows_m if layer is self.layers[-1] else None
            x_nd = layer(x_nd, positions_n, self.ropes, backend, wanted, router_logits)
        return backend.norm(x_nd, self._norms[0])

    def positions(self, lengths_b: Tensor, width: int) -> Tensor:
        """Positions [b * width] for `forward` of sequences padded to `width`: each turns as its own
        length says."""
        positions_n = torch.arange(width, device=lengths_b.device).repeat(len(lengths_b))
        if not self.config.long_after:
            return positions_n
        offsets = [self.config.rope_offset(length) for length in lengths_b.tolist()]
        return positions_n + torch.tensor(offsets, device=lengths_b.device).repeat_interleave(width)

    def turned(self, positions_n: Tensor) -> Tensor:
        """Positions [n] for `forward` of sequences one after another, whose own begin at 0 each:
        each turns as its own length says."""
        if not self.config.long_after:
            return positions_n
        number_n = (positions_n == 0).cumsum(0) - 1
        counts = torch.bincount(number_n).tolist()
        offsets = [self.config.rope_offset(count) for count in counts]
        return positions_n + torch.tensor(offsets, device=positions_n.device)[number_n]

    def logits(self, hidden_md: Tensor, backend: Backend) -> Tensor:
        """Unnormalised log-probabilities [m, vocab] of the rows given."""
        (logits_mv,) = backend.linear(hidden_md, self.head)
        config = self.config
        if config.logit_scale != 1.0:
            logits_mv = logits_mv * config.logit_scale
        if config.logit_cap:
            logits_mv = config.logit_cap * torch.tanh(logits_mv / config.logit_cap)
        return logits_mv

    def init_weights(self, seed: int) -> None:
        """GPT-2's rule: N(0, 0.02), residual maps scaled by 1/sqrt(2 layers), zero biases."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.02 / math.sqrt(2 * self.config.layers)
        norms = {name for name, module in self.named_modules() if isinstance(module, Norm)}
        residual = {
            f"{self._names.layer.format(number)}.{name}"
            for number, layer in enumerate(self.layers)
            for name in layer.residual_maps
        }
        for name, parameter in self.named_parameters():
            module = name.rpartition(".")[0]
            with torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif module in norms:
                    parameter.fill_(0.0 if self.config.norm_offset else 1.0)
                else:
                    std = residual_std if module in residual else 0.02
                    parameter.normal_(0.0, std, generator=generator)
