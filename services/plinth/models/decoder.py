"""The decoder, once: what is trained is what is served.

`Decoder.state_dict()` carries Hugging Face names; the only difference is GPT-2's maps, which are
[out, in] here and [in, out] in a checkpoint (`models.weights` turns them). Tokens lie on one
flat axis: how they group into sequences is the backend's knowledge.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.kernels.backend import Backend, LinearWeights, LowRank
from plinth.models.config import ModelConfig
from plinth.models.layers import Gpt2Layer, Linear, LlamaLayer, Norm, Rope


class LlamaBody(nn.Module):
    """Embedding, rotary blocks, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(LlamaLayer(config, i) for i in range(config.layers))
        self.norm = Norm(config.hidden, config.norm_eps, bias=False)
        self.rope = Rope(config)

    def forward(
        self, ids_n: Tensor, positions_n: Tensor, backend: Backend, rows_m: Tensor | None = None
    ) -> Tensor:
        x_nd = F.embedding(ids_n, self.embed_tokens.weight)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            wanted = rows_m if number == last else None
            x_nd = layer(x_nd, positions_n, self.rope, backend, wanted)
        return backend.norm(x_nd, self.norm)


class Gpt2Body(nn.Module):
    """Embeddings of tokens and positions, blocks, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden)
        self.wpe = nn.Embedding(config.context, config.hidden)
        self.h = nn.ModuleList(Gpt2Layer(config, i) for i in range(config.layers))
        self.ln_f = Norm(config.hidden, config.norm_eps, bias=True)

    def forward(
        self, ids_n: Tensor, positions_n: Tensor, backend: Backend, rows_m: Tensor | None = None
    ) -> Tensor:
        x_nd = F.embedding(ids_n, self.wte.weight) + F.embedding(positions_n, self.wpe.weight)
        last = len(self.h) - 1
        for number, layer in enumerate(self.h):
            x_nd = layer(x_nd, backend, rows_m if number == last else None)
        return backend.norm(x_nd, self.ln_f)


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
    """A causal language model of either family."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Of the files that it was opened from, by tensor; it is saved in them again (`dtypes`).
        self.stored_dtypes: dict[str, torch.dtype] = {}
        if config.family == "llama":
            self.model = LlamaBody(config)
        else:
            self.transformer = Gpt2Body(config)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden, config.vocab_size, bias=False)
        self._tied = _TiedHead(self.embedding)

    @property
    def embedding(self) -> nn.Embedding:
        """The token table [vocab, d]."""
        return self.model.embed_tokens if self.config.family == "llama" else self.transformer.wte

    @property
    def head(self) -> LinearWeights:
        """The output map: its own, or the token table."""
        return self._tied if self.config.tie_embeddings else self.lm_head

    def forward(
        self, ids_n: Tensor, positions_n: Tensor, backend: Backend, rows_m: Tensor | None = None
    ) -> Tensor:
        """Hidden states [n, d] after the final norm. `ids_n` and `positions_n` are int64.

        rows_m: the rows that are wanted, [m, d] then; the last layer does no more for the others
        than let them be attended to.
        """
        body = self.model if self.config.family == "llama" else self.transformer
        hidden: Tensor = body(ids_n, positions_n, backend, rows_m)
        return hidden

    def logits(self, hidden_md: Tensor, backend: Backend) -> Tensor:
        """Unnormalised log-probabilities [m, vocab] of the rows given."""
        return backend.linear(hidden_md, self.head)[0]

    def init_weights(self, seed: int) -> None:
        """GPT-2's rule: N(0, 0.02), residual maps scaled by 1/sqrt(2 layers), zero biases."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.02 / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif "norm" in name or ".ln_" in name:
                    parameter.fill_(1.0)
                else:
                    residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
                    std = residual_std if residual else 0.02
                    parameter.normal_(0.0, std, generator=generator)
