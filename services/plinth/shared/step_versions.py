"""Which version of the code a step's result is of, by the step's kind; part of every digest by
which an earlier result is found.

A number goes up by one when what a step of that kind makes from the same settings and inputs
changes: a fault was mended, a default moved, a format grew. Then the step is done again, and so is
whatever takes what it makes. It stays for what leaves the result as it is: speed, messages, names.
The package's version is not used: it would train every model again at each release. How data is
split is a part of what "data", "prompts" and "preferences" make.

`tests/unit/coordinator/test_step_versions.py` holds what small steps make, by version.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

STEP_VERSIONS: Mapping[str, int] = MappingProxyType(
    {
        "data": 1,
        "tokenizer": 1,
        "train": 1,
        "evaluate": 1,
        "compare": 1,
        "preferences": 1,
        "prompts": 1,
        "sample": 1,
        "verify": 1,
        "publish": 1,
        "serve": 1,
        "canary": 1,
    }
)
