"""The two halves of a corpus artifact: text to fit a yardstick on, and text held out of training.

A corpus artifact holds `train/documents-*.jsonl` and `validation/documents-*.jsonl`, one
`{"text": …}` a line. Blocking; called in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plinth.models.ngram import ByteNgram
from plinth.shared.errors import DataLoss, FailedPrecondition

# The yardstick is fitted on at most this much text: enough for an order of 5, and bounded.
NGRAM_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents and their cross-entropy under the byte-level 5-gram of the same corpus."""

    documents: tuple[str, ...]
    size_bytes: int
    ngram_bits_per_byte: float


def judge_by_ngram(corpus: Path, *, max_bytes: int) -> HeldOut:
    """Takes whole held-out documents up to `max_bytes` (at least one) and judges them by the
    5-gram fitted on the training half."""
    documents: list[str] = []
    size = 0
    for text in read(corpus, "validation"):
        length = len(text.encode())
        if documents and size + length > max_bytes:
            break
        documents.append(text)
        size += length
    if not size:
        raise FailedPrecondition(
            f"the corpus at {corpus} holds out no text; raise validation_fraction of its step"
        )
    model = ByteNgram(5).fit(_up_to(NGRAM_MAX_BYTES, read(corpus, "train")))
    bits = model.bits_per_byte(text.encode() for text in documents)
    return HeldOut(tuple(documents), size, bits)


def read(corpus: Path, split: str) -> Iterator[str]:
    """Texts of one split in the order of the files; empty documents are left out."""
    paths = sorted((corpus / split).glob("documents-*.jsonl"))
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataLoss(
                        f"{path} line {number} is no document with a text (bits per byte are "
                        "measured on plain text, not on conversations)"
                    ) from error
                if text:
                    yield text


def _up_to(limit: int, texts: Iterator[str]) -> Iterator[bytes]:
    taken = 0
    for text in texts:
        document = text.encode()
        yield document
        taken += len(document)
        if taken >= limit:
            return
