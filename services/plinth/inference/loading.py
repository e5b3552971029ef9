"""From a model artifact's folder to an engine that is ready to step."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plinth.engine.drafting import SPECULATE_UP_TO
from plinth.engine.engine import Engine
from plinth.engine.isolation import NON_FINITE
from plinth.engine.memory import block_count, fewest
from plinth.engine.plan import Row
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.engine.speculation import Drafter, LookupDrafter, ModelDrafter
from plinth.inference.drafts import check_draft
from plinth.kernels.paged import KvCache
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.layers import Linear
from plinth.models.mixture import Map
from plinth.models.weights import load_decoder, weights_digest
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.shared.settings_sections import EngineSettings
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.inference")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """An engine with what its front announces."""

    engine: Engine
    config: ModelConfig
    weights_digest: str


def load_engine(
    folder: Path,
    settings: EngineSettings,
    *,
    speculation: str = "",
    draft_folder: Callable[[str], Path] | None = None,
) -> LoadedModel:
    """Open the model in `folder` behind an engine.

    `speculation` ("off", "lookup", "draft:<artifact>") overrides the settings; `draft_folder`
    finds the folder of a draft's artifact. Raises what `load_decoder` raises, InvalidArgument where
    the cache or the draft cannot be right, and DataLoss where a first token has no finite logits.
    """
    digest = weights_digest(folder)
    decoder = load_decoder(folder, dtype=_DTYPES[settings.dtype], device=settings.device)
    limits = Limits(
        batch_tokens=settings.max_batch_tokens,
        running=settings.max_running,
        waiting=settings.max_waiting,
        positions=decoder.config.context,
        priority_aging=settings.priority_aging,
    )
    runner = _runner(decoder, limits, settings, settings.kv_cache_bytes)
    mode = speculation or settings.speculation
    drafters: dict[str, Drafter] = {"lookup": LookupDrafter()}
    if mode.startswith("draft:"):
        if draft_folder is None:
            raise InvalidArgument(f"speculation {mode!r}: no store to take the draft from")
        place = draft_folder(mode.removeprefix("draft:"))
        draft = load_decoder(place, dtype=_DTYPES[settings.dtype], device=settings.device)
        check_draft(mode, place, folder, draft.config, decoder.config)
        if draft.config.context < decoder.config.context:
            _log.warning(
                "draft.context",
                draft=mode.removeprefix("draft:"),
                context=draft.config.context,
                model_context=decoder.config.context,
                effect="answers go on without drafts past the draft's context",
            )
        together = min(limits.running, SPECULATE_UP_TO)
        draft_limits = replace(limits, running=together, positions=draft.config.context)
        # Room for as many tokens as the model has, in proportion to what a token takes.
        memory = settings.kv_cache_bytes * _token_bytes(draft) // _token_bytes(decoder)
        drafters["draft"] = ModelDrafter(
            _runner(draft, draft_limits, settings, memory), decoder.config.vocab_size
        )
        mode = "draft"
    elif mode not in ("off", "lookup"):
        raise InvalidArgument(
            f"speculation is {mode!r}; use 'off', 'lookup' or 'draft:<artifact>'",
            field="speculation",
        )
    _return_freed_memory()
    engine = Engine(
        runner,
        limits,
        prefix_cache=settings.prefix_cache,
        drafters=drafters,
        speculation=mode,
        weights_digest=digest,
    )
    return LoadedModel(engine, decoder.config, digest)


def _return_freed_memory() -> None:
    """Loading frees as much as it keeps (0.44 GB with SmolLM2), and glibc would hold on to it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # not on musl or macOS
        gc.collect()
        trim(0)


def _token_bytes(decoder: Decoder) -> int:
    return sum(state.bytes_of(1) for state in decoder.states)


def _runner(decoder: Decoder, limits: Limits, settings: EngineSettings, memory: int) -> Runner:
    states, dtype, size = decoder.states, _DTYPES[settings.dtype], settings.block_size
    blocks = block_count(states, limits, size, memory, dtype.itemsize)
    needed = fewest(states, limits, size)
    if blocks < needed:
        least = needed * KvCache.bytes_per_block(states, size, dtype.itemsize)
        raise InvalidArgument(
            f"engine.kv_cache_bytes leaves {memory} bytes to a model {needed} blocks of which "
            f"take {least}; raise it",
            field="engine.kv_cache_bytes",
        )
    cache = KvCache(states, blocks, size, dtype=dtype, device=settings.device)
    runner = Runner(decoder.eval().requires_grad_(False), cache)
    # One token through every map: packs them, and proves that the model can be served at all.
    tables = tuple((0, (group,)) for group in range(len(cache.windows)))
    (result,) = runner.run_rows([Row(0, 0, (0,), tables, outputs=1)])
    if result.logits_mv is None or not torch.isfinite(result.logits_mv).all():
        raise DataLoss(
            "the model's logits are not finite after a first token: its weights are damaged, or "
            f"its arithmetic overflows in {settings.dtype}",
            reason=NON_FINITE,
        )
    if runner.native:
        for module in decoder.modules():
            if isinstance(module, Linear | Map):  # the packed copy serves; the tied table stays
                module.weight.data = torch.empty(0)
    return runner
