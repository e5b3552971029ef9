"""Rewards that can be verified, by kind. Importing this registers Plinth's own."""

from plinth.reward.verifiers import answers as answers
from plinth.reward.verifiers import checks as checks
from plinth.reward.verifiers import code as code
from plinth.reward.verifiers import form as form
from plinth.reward.verifiers import length as length
from plinth.reward.verifiers import patterns as patterns
from plinth.reward.verifiers import variety as variety
from plinth.reward.verifiers.contract import (
    MAX_RULE_BYTES,
    Answer,
    Rule,
    Tools,
    Verdict,
    kinds,
    load_plugins,
    parse_rule,
)

__all__ = [
    "MAX_RULE_BYTES",
    "Answer",
    "Rule",
    "Tools",
    "Verdict",
    "kinds",
    "load_plugins",
    "parse_rule",
]
