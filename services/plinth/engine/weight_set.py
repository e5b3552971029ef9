"""A model beside the served one, whose weights are renewed in place: a policy that learns.

Knows no queue and no run: folders in Hugging Face's format come in, requests are answered by what
came last.
"""

from __future__ import annotations

from pathlib import Path

import torch

from plinth.engine.engine import Engine
from plinth.engine.memory import block_count, fewest
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.kernels.paged import KvCache
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.hf.folder import Checkpoint
from plinth.models.weights import check_tensors
from plinth.shared.errors import DataLoss, ResourceExhausted

BLOCK = 16  # tokens
RUNNING, BATCH_TOKENS = 64, 512


def engine_over(
    decoder: Decoder, *, running: int, waiting: int, device: str, kv_bytes: int = 0
) -> Engine:
    """An engine over the decoder's own tensors, which may change while it is idle.

    The cache has room for `running` whole contexts, or for what fits `kv_bytes`; a request must
    fit it whole. ResourceExhausted when not even `fewest` blocks do.
    """
    limits = Limits(BATCH_TOKENS, running, waiting, decoder.config.context)
    itemsize = torch.float32.itemsize
    blocks = block_count(decoder.states, limits, BLOCK, kv_bytes or None, itemsize)
    needed = fewest(decoder.states, limits, BLOCK)
    if blocks < needed:
        least = needed * KvCache.bytes_per_block(decoder.states, BLOCK, itemsize)
        raise ResourceExhausted(
            f"{needed} blocks of this policy take {least} bytes of keys and values, "
            f"{kv_bytes} are set aside; raise engine.policy_kv_cache_bytes",
            reason="POLICY_CACHE",
        )
    cache = KvCache(decoder.states, blocks, BLOCK, device=device)
    return Engine(Runner(decoder, cache), limits)


class WeightSet:
    """One decoder and its engine."""

    def __init__(self, config: ModelConfig, engine: Engine) -> None:
        self.config, self.engine = config, engine

    @classmethod
    def open(cls, folder: Path, *, device: str, kv_bytes: int) -> WeightSet:
        """For models of the shape that `folder` has. Raises what `Checkpoint.open` raises; the
        weights come with `take`."""
        config = Checkpoint.open(folder).config
        decoder = Decoder(config).to(device).eval().requires_grad_(False)
        engine = engine_over(
            decoder, running=RUNNING, waiting=4 * RUNNING, device=device, kv_bytes=kv_bytes
        )
        return cls(config, engine)

    def fits(self, folder: Path) -> bool:
        """Whether the model in `folder` has this shape."""
        return Checkpoint.open(folder).config == self.config

    def take(self, folder: Path, digest: str) -> None:
        """Hold the weights in `folder` from now on, which are named `digest` ("": whatever lies
        there, an artifact that was verified).

        Call it while the engine is idle. Raises what reading raises, and DataLoss when what
        arrived is not what was sent: then nothing is answered until the next `take`.
        """
        tensors = dict(Checkpoint.open(folder).tensors())
        check_tensors(self.config, tensors, str(folder))
        self.engine.weights_digest = ""
        with torch.no_grad():
            for name, parameter in self.engine.runner.decoder.named_parameters():
                parameter.copy_(tensors[name])
        arrived = self.engine.renew_weights()
        if digest and arrived != digest:
            self.engine.weights_digest = ""
            raise DataLoss(
                f"the weights in {folder} are {arrived}, sent as {digest}: they were changed on "
                "their way",
                reason="WEIGHTS_DIGEST",
            )
