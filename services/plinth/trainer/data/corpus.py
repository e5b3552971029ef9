"""A corpus artifact: `train/` and `validation/`, each with `documents-*.jsonl`.

Documents are de-duplicated exactly and split by their hash, so a document lands on the same side
whatever the rest of the corpus is. Memory holds one document and 16 bytes for each seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO

from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import split_share
from plinth.trainer.data.documents import Document, parse_document

SPLITS = ("train", "validation")
SHARD_BYTES = 64 * 1024 * 1024
_FORMS = {"text": "plain text", "messages": "chat messages", "pairs": "preference pairs"}


@dataclass
class CorpusCounts:
    """What a corpus holds; sizes are UTF-8 bytes of text."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    form: str = ""  # of all documents: "text", "messages" or "pairs"
    digest: str = ""  # over the hashes of all documents kept, in order

    def to_json(self) -> dict[str, object]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "duplicates": self.duplicates,
            "form": self.form,
            "digest": self.digest,
        }


class _ShardWriter:
    """`documents-00000.jsonl`, … of one split; a new file after SHARD_BYTES."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        folder.mkdir(parents=True)
        self._folder, self._limit = folder, shard_bytes
        self._file: IO[str] | None = None
        self._shards = self._written = 0

    def add(self, document: Document) -> None:
        line = document.to_json() + "\n"
        if self._file is None or self._written >= self._limit:
            self.close()
            path = self._folder / f"documents-{self._shards:05d}.jsonl"
            self._file = path.open("w", encoding="utf-8", newline="\n")
            self._shards, self._written = self._shards + 1, 0
        self._file.write(line)
        self._written += len(line.encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_corpus(
    documents: Iterator[Document],
    out: Path,
    *,
    source: str,
    validation_fraction: float,
    max_bytes: int = 0,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> CorpusCounts:
    """Write documents to the new folder `out`. `source` names the corpus in errors.

    `on_bytes` is told the bytes read so far; what it raises ends the work.
    """
    counts, seen, digest = CorpusCounts(), set[bytes](), sha256()
    writers = {split: _ShardWriter(out / split, shard_bytes) for split in SPLITS}
    try:
        total = 0
        for document in documents:
            key = document.digest()
            if key in seen:
                counts.duplicates += 1
                continue
            _check_form(document, counts, bool(seen), source)
            if max_bytes and total + document.size > max_bytes and seen:
                break
            seen.add(key)
            digest.update(key)
            held_out = split_share(document.split_key()) < validation_fraction
            split = "validation" if held_out else "train"
            writers[split].add(document)
            counts.documents[split] += 1
            counts.bytes[split] += document.size
            total += document.size
            on_bytes(total)
    finally:
        for writer in writers.values():
            writer.close()
    _check_not_empty(counts, source)
    if validation_fraction > 0 and 0 in counts.documents.values():
        _balance(out, counts, seen, source)
    counts.digest = f"sha256:{digest.hexdigest()}"
    (out / "corpus.json").write_text(json.dumps({"format": 1, **counts.to_json()}, indent=1))
    return counts


def _check_form(document: Document, counts: CorpusCounts, started: bool, source: str) -> None:
    if started and document.form != counts.form:
        raise InvalidArgument(
            f"corpus {source} mixes {_FORMS[counts.form]} and {_FORMS[document.form]}; make two "
            "corpora of them",
            field="corpus_dir",
        )
    counts.form = document.form


def _check_not_empty(counts: CorpusCounts, source: str) -> None:
    if not any(counts.documents.values()):
        raise InvalidArgument(
            f"corpus {source} is empty: its files hold no text. Put UTF-8 text there",
            field="corpus_dir",
        )


def _balance(out: Path, counts: CorpusCounts, seen: set[bytes], source: str) -> None:
    """Few documents, and one side got none: give it the one nearest to it by hash."""
    if len(seen) < 2:
        raise InvalidArgument(
            f"corpus {source} is a single short document, so none can be held out for validation; "
            "add text, or set validation_fraction to 0",
            field="validation_fraction",
        )
    empty = next(split for split in SPLITS if not counts.documents[split])
    full = next(split for split in SPLITS if split != empty)
    moved = min(seen, key=split_share) if empty == "validation" else max(seen, key=split_share)
    documents = list(read_split(out, full))  # few by nature: the hash left a side empty
    for split in SPLITS:
        for path in (out / split).glob("documents-*.jsonl"):
            path.unlink()
        (out / split).rmdir()
        chosen = [d for d in documents if (d.digest() == moved) == (split == empty)]
        writer = _ShardWriter(out / split, SHARD_BYTES)
        for document in chosen:
            writer.add(document)
        writer.close()
        counts.documents[split] = len(chosen)
        counts.bytes[split] = sum(d.size for d in chosen)


def read_split(corpus: Path, split: str) -> Iterator[Document]:
    """The documents of one split of a corpus artifact, in order."""
    for path in sorted((corpus / split).glob("documents-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield parse_document(line, f"{path}:{number}")
