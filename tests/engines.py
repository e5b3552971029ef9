"""Engines for tests: a decoder from a folder behind a small paged cache, and ways to drive it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from plinth.engine.engine import Engine
from plinth.engine.request import Binding, Request, SampledToken, Sampling, Usage
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.engine.speculation import Drafter, LookupDrafter, ModelDrafter
from plinth.kernels.paged import KvCache
from plinth.models.decoder import Decoder
from plinth.models.weights import load_decoder

BINDING = Binding("")


def runner(decoder: Decoder, blocks: int, block_size: int, *, native: bool = True) -> Runner:
    cache = KvCache(decoder.states, blocks, block_size)
    return Runner(decoder.eval().requires_grad_(False), cache, native=native)


def engine(
    source: Path | Decoder,
    *,
    blocks: int = 256,
    block_size: int = 16,
    chunk: int = 512,
    running: int = 64,
    waiting: int = 1000,
    native: bool = True,
    prefix_cache: bool = True,
    speculation: str = "off",
    draft: Path | Decoder | None = None,
) -> Engine:
    """An engine whose freed blocks are poisoned with NaN."""
    decoder = source if isinstance(source, Decoder) else load_decoder(source)
    drafters: dict[str, Drafter] = {"lookup": LookupDrafter()}
    if draft is not None:
        small = draft if isinstance(draft, Decoder) else load_decoder(draft)
        drafters["draft"] = ModelDrafter(
            runner(small, blocks, block_size, native=native), decoder.config.vocab_size
        )
    return Engine(
        runner(decoder, blocks, block_size, native=native),
        Limits(chunk, running, waiting, decoder.config.context),
        prefix_cache=prefix_cache,
        drafters=drafters,
        speculation=speculation,
        poison=True,
    )


def complete(
    engine: Engine, prompts: Iterable[tuple[int, ...]], sampling: Sampling
) -> tuple[list[list[SampledToken]], list[Usage]]:
    """Serve the prompts together; the tokens and usage of each, in order."""
    names = []
    for i, prompt in enumerate(prompts):
        names.append(str(i))
        engine.add(Request(str(i), tuple(prompt), BINDING, sampling))
    tokens: dict[str, list[SampledToken]] = {name: [] for name in names}
    usage: dict[str, Usage] = {}
    while engine.busy:
        for event in engine.step():
            tokens[event.request_id] += event.tokens
            usage[event.request_id] = event.usage
    return [tokens[name] for name in names], [usage[name] for name in names]
