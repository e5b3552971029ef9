"""What a request asks for, checked: every error names the field and what would be right.

Needs only the request; references are looked up later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct

from plinth.reward.verifiers import MAX_RULE_BYTES, Rule, parse_rule
from plinth.shared.api.structs import mapping_of
from plinth.shared.errors import InvalidArgument
from plinth.v1 import rewards_pb2 as pb

MAX_SOURCES, MAX_ITEMS = 16, 1024
MAX_TEXT_CHARS = 256 << 10  # of one prompt or response
MAX_IDS = 1 << 17  # of one prompt or response
MAX_MESSAGES = 256
MAX_REFERENCE_CHARS = 64 << 10
MAX_CHECKS, MAX_TESTS, MAX_TEST_CHARS = 32, 64, 16 << 10
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Source:
    """One source: either `model`, a reference, or `rule`."""

    name: str
    weight: float
    model: str
    rule: Rule | None
    scale: float
    shift: float
    clip_low: float
    clip_high: float

    def value(self, raw: float) -> float:
        """clip(scale · raw + shift)."""
        return min(max(self.scale * raw + self.shift, self.clip_low), self.clip_high)


@dataclass(frozen=True)
class Asked:
    """A request whose every part has been checked. checks: each item's own rules."""

    sources: tuple[Source, ...]
    items: tuple[pb.RewardItem, ...]
    checks: tuple[tuple[Rule, ...], ...]
    tokenizer: str

    @property
    def models(self) -> list[Source]:
        return [source for source in self.sources if source.rule is None]

    @property
    def needs_text(self) -> bool:
        """Whether any rule reads the answers."""
        return any(source.rule is not None for source in self.sources)


def parse_request(request: pb.ScoreRewardsRequest) -> Asked:
    """InvalidArgument naming the first thing that is wrong."""
    sources = parse_sources(request.sources)
    if not 1 <= len(request.items) <= MAX_ITEMS:
        raise InvalidArgument(
            f"{len(request.items)} items, must be 1 to {MAX_ITEMS}", field="items"
        )
    asked = Asked(
        sources,
        tuple(request.items),
        tuple(_checks(item, f"items.{i}") for i, item in enumerate(request.items)),
        request.tokenizer,
    )
    for i, item in enumerate(request.items):
        _check_item(item, f"items.{i}", asked)
    return asked


def parse_sources(sources: Sequence[pb.RewardSource]) -> tuple[Source, ...]:
    """InvalidArgument naming the first thing that is wrong."""
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise InvalidArgument(
            f"{len(sources)} sources, must be 1 to {MAX_SOURCES}", field="sources"
        )
    parsed = tuple(_source(source, f"sources.{i}") for i, source in enumerate(sources))
    names = [source.name for source in parsed]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidArgument(
                f"sources.{i}.name: {name!r} is taken by an earlier source",
                field=f"sources.{i}.name",
            )
    return parsed


def _source(source: pb.RewardSource, where: str) -> Source:
    if not _NAME.fullmatch(source.name):
        raise InvalidArgument(
            f"{where}.name {source.name[:80]!r}: use 1 to 64 of a-z 0-9 . _ -, starting with a "
            "letter or a digit",
            field=f"{where}.name",
        )
    rule = None
    kind = source.WhichOneof("source")
    if kind == "rule":
        rule = _rule(source.rule, f"{where}.rule")
    elif kind != "model" or not source.model:
        raise InvalidArgument(
            f"{where}: give a reward model's reference as 'model', or a rule as 'rule'",
            field=where,
        )
    made = Source(
        name=source.name,
        weight=_finite(source, "weight", 1.0, where),
        model=source.model,
        rule=rule,
        scale=_finite(source, "scale", 1.0, where),
        shift=_finite(source, "shift", 0.0, where),
        clip_low=_finite(source, "clip_low", -math.inf, where),
        clip_high=_finite(source, "clip_high", math.inf, where),
    )
    if made.clip_low > made.clip_high:
        raise InvalidArgument(
            f"{where}: clip_low {made.clip_low:g} is above clip_high {made.clip_high:g}",
            field=f"{where}.clip_low",
        )
    return made


def _rule(said: Struct, where: str) -> Rule:
    _at_most(said.ByteSize(), MAX_RULE_BYTES, "bytes", where)
    return parse_rule(mapping_of(said, where), where)


def _finite(source: pb.RewardSource, name: str, default: float, where: str) -> float:
    if not source.HasField(name):  # type: ignore[arg-type]
        return default
    value = float(getattr(source, name))
    if not math.isfinite(value):
        raise InvalidArgument(
            f"{where}.{name} is {value}, must be a finite number", field=f"{where}.{name}"
        )
    return value


def _checks(item: pb.RewardItem, where: str) -> tuple[Rule, ...]:
    where = f"{where}.checks"
    _at_most(len(item.checks), MAX_CHECKS, "rules", where)
    checks = tuple(_rule(one, f"{where}.{i}") for i, one in enumerate(item.checks))
    for i, check in enumerate(checks):
        if check.KIND == "checks":
            raise InvalidArgument(f"{where}.{i}: checks can't hold 'checks'", field=f"{where}.{i}")
    return checks


def _check_item(item: pb.RewardItem, where: str, asked: Asked) -> None:
    response = item.WhichOneof("response")
    if response is None:
        raise InvalidArgument(
            f"{where}: no response; give response_tokens or response_text", field=where
        )
    if asked.models and item.WhichOneof("prompt") is None:
        raise InvalidArgument(
            f"{where}: no prompt, and source {asked.models[0].name!r} is a model, which reads it",
            field=where,
        )
    if response == "response_tokens" and asked.needs_text and not asked.tokenizer:
        raise InvalidArgument(
            f"{where}.response_tokens: rules read text; name the tokenizer of these ids as "
            "'tokenizer', or send response_text",
            field="tokenizer",
        )
    for name in ("prompt_tokens", "response_tokens"):
        _at_most(len(getattr(item, name).ids), MAX_IDS, "ids", f"{where}.{name}")
    for name in ("prompt_text", "response_text"):
        _at_most(len(getattr(item, name)), MAX_TEXT_CHARS, "characters", f"{where}.{name}")
    _check_messages(item, where)
    _at_most(len(item.reference), MAX_REFERENCE_CHARS, "characters", f"{where}.reference")
    _at_most(len(item.tests), MAX_TESTS, "tests", f"{where}.tests")
    for i, test in enumerate(item.tests):
        _at_most(len(test), MAX_TEST_CHARS, "characters", f"{where}.tests.{i}")


def _check_messages(item: pb.RewardItem, where: str) -> None:
    where = f"{where}.prompt_messages"
    if item.WhichOneof("prompt") != "prompt_messages":
        return
    messages = item.prompt_messages.messages
    if not messages:
        raise InvalidArgument(f"{where}: a conversation needs a message", field=where)
    _at_most(len(messages), MAX_MESSAGES, "messages", where)
    total = sum(len(message.content) for message in messages)
    _at_most(total, MAX_TEXT_CHARS, "characters", where)
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidArgument(
                f"{where}.{i}.role: {message.role[:64]!r} is none of {', '.join(ROLES)}",
                field=f"{where}.{i}.role",
            )


def _at_most(count: int, most: int, unit: str, where: str) -> None:
    if count > most:
        raise InvalidArgument(f"{where}: {count} {unit}, at most {most} are taken", field=where)
