"""The prompts of a completion as REST brings them: read up to the first mistake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plinth.gateway import limits
from plinth.internal.v1 import inference_pb2
from plinth.shared.errors import InvalidArgument


def read_prompts(given: Any) -> list[str | Sequence[int]]:
    """Text, ids, or a list of texts or of lists of ids. InvalidArgument for the first mistake."""
    if isinstance(given, str):
        limits.check_text(given, "prompt")
        return [given]
    if not isinstance(given, list):
        raise _wrong("prompt", "text, a list of texts, token ids, or a list of them is needed")
    if given and type(given[0]) is int:
        return [_ids(given, "prompt")]
    limits.check_answers(len(given), 1)
    prompts: list[str | Sequence[int]] = []
    for index, prompt in enumerate(given):
        where = "prompt" if len(given) == 1 else f"prompt.{index}"
        if isinstance(prompt, str):
            limits.check_text(prompt, where)
            prompts.append(prompt)
        elif isinstance(prompt, list):
            prompts.append(_ids(prompt, where))
        else:
            raise _wrong(f"prompt.{index}", "text or a list of token ids is needed")
    return prompts


def _ids(ids: list[Any], where: str) -> Sequence[int]:
    """The same in a message's storage: a tenth of a list's, and what shards are asked with."""
    if any(kind is not int for kind in set(map(type, ids))):
        index = next(index for index, one in enumerate(ids) if type(one) is not int)
        raise _wrong(f"{where}.{index}", "a token id is needed, like its neighbours")
    if ids and not (min(ids) >= 0 and max(ids) < 1 << 32):
        index = next(index for index, one in enumerate(ids) if not 0 <= one < 1 << 32)
        raise _wrong(f"{where}.{index}", f"{ids[index]} is no token id, which is 0 to 2^32 - 1")
    return inference_pb2.TokenSpan(ids=ids).ids


def _wrong(path: str, right: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {right}", reason="INVALID_VALUE", field=path)
