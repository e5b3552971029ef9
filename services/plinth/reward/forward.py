"""A reward model that scores sequences, with the same bits alone and in a crowd.

On CPU the C++ kernels give every row one fixed order of summation, so sequences share launches.
Elsewhere each is computed alone. The only module of this stage that imports torch.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from plinth.kernels.build import BuildError, LibraryError
from plinth.kernels.library import kernels
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.training import SdpaBackend
from plinth.models.layers import Linear
from plinth.models.mixture import Map
from plinth.models.reward import load_reward_model

BLOCK = 16  # tokens


class ScoringModel:
    """One reward model, opened for looking."""

    def __init__(self, folder: Path, device: str) -> None:
        """Raises what `load_reward_model` raises."""
        self._model = load_reward_model(folder).to(device).eval().requires_grad_(False)
        self._device = device
        self.context, self.vocab_size = self._model.config.context, self._model.config.vocab_size
        self._packed: PackedWeights | None = None
        if device == "cpu" and _native():
            self._packed = PackedWeights()
            self.scores([(0, 0)])  # packs every map
            for module in self._model.modules():
                if isinstance(module, Linear | Map):  # the packed copy serves
                    module.weight.data = torch.empty(0)
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # not on musl or macOS
            trim(0)

    @torch.inference_mode()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score at each sequence's last token. None may be empty or above `context`."""
        if self._packed is None:
            return [self._alone(sequence) for sequence in sequences]
        return self._together(sequences, self._packed)

    def _alone(self, sequence: Sequence[int]) -> float:
        ids_n = torch.tensor(sequence, dtype=torch.int64, device=self._device)
        backend = SdpaBackend(1, len(sequence))
        positions_n = torch.arange(len(sequence), device=self._device)
        hidden_nd = self._model(ids_n, positions_n, backend)
        return float(self._model.scores(hidden_nd[-1:], backend)[0])

    def _together(self, sequences: Sequence[Sequence[int]], packed: PackedWeights) -> list[float]:
        runs, first = [], 0
        for sequence in sequences:
            blocks = -(-len(sequence) // BLOCK)
            runs.append((0, len(sequence), list(range(first, first + blocks))))
            first += blocks
        shape = self._model.config
        cache = KvCache(1, first, shape.kv_heads, shape.head_dim, BLOCK)
        # A sequence is read whole in one launch, so a layer's keys are of no use to a later one.
        cache.keys *= shape.layers
        cache.values *= shape.layers
        batch = PagedBatch.build(runs, BLOCK)
        backend = NativeBackend(packed, cache, batch)
        ids_n = torch.tensor([i for sequence in sequences for i in sequence], dtype=torch.int64)
        hidden_nd = self._model(ids_n, batch.positions_n, backend)
        last_b: Tensor = (batch.firsts_q + batch.counts_q - 1).long()
        scores: list[float] = self._model.scores(hidden_nd[last_b].contiguous(), backend).tolist()
        return scores


def _native() -> bool:
    try:
        kernels()
    except LibraryError:  # a wrong one was named; scoring otherwise would hide it
        raise
    except BuildError:
        return False
    return True
