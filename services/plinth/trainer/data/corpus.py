"""A corpus artifact: `train/` and `validation/`, each with `documents-*.jsonl`.

Documents are de-duplicated exactly and split by prompt (`shared/splits.py`), so a document lands on
the same side whatever the rest of the corpus is, and all of one prompt on one side; groups that
share a prompt are held out together (`joined.py`). Only where the hash would hold out a share far
from what was asked (a small corpus, one large document) is it split anew; see `resplit.py`. Memory
holds one document and some 200 bytes for each seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake, check_intake
from plinth.shared.splits import SPLITS, split_share
from plinth.trainer.data.budget import Budget
from plinth.trainer.data.contradictions import Contradictions
from plinth.trainer.data.documents import Document, parse_document
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.joined import Joined
from plinth.trainer.data.passages import needed
from plinth.trainer.data.resplit import by_hash, settled

SHARD_BYTES = 64 * 1024 * 1024


@dataclass
class CorpusCounts:
    """What a corpus holds; sizes are UTF-8 bytes of text."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    form: str = ""  # of all documents: "text", "messages" or "pairs"
    digest: str = ""  # over the hashes of all documents kept, in order
    intake: list[Intake] = field(default_factory=list)

    def add(self, split: str, document: Document) -> None:
        self.documents[split] += 1
        self.bytes[split] += document.size

    @property
    def held_out(self) -> float:
        """The share of the bytes that is in the validation split."""
        return self.bytes["validation"] / max(1, sum(self.bytes.values()))

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "duplicates": self.duplicates,
            "form": self.form,
            "digest": self.digest,
            "held_out": round(self.held_out, 6),
            "intake": [intake.to_json() for intake in self.intake],
        }


class ShardWriter:
    """`documents-00000.jsonl`, … of one split; a new file after `shard_bytes`."""

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
    held_out: Iterator[Document] | None = None,
    max_bytes: int = 0,
    max_left_out: float | None = None,
    intake: Sequence[Intake] = (),
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> CorpusCounts:
    """Write documents to the new folder `out`. `source` names the corpus in errors; `intake` is
    what was left out before documents came of it. With `held_out` the sides are given: it is read
    after `documents`, of which none is held out then, whatever `validation_fraction` says.

    `on_bytes` is told the bytes read so far; what it raises ends the work. InvalidArgument: no
    documents, more than one form, more left out than `max_left_out`, or nothing to hold out.
    """
    counts, digest, seen = CorpusCounts(), sha256(), set[bytes]()
    taken, sizes, budget = Intake("documents"), dict[bytes, int](), Budget(max_bytes)
    joined = Joined()
    contradictions = Contradictions()
    writers = {split: ShardWriter(out / split, shard_bytes) for split in SPLITS}
    try:
        for document, given in _sides(documents, held_out):
            key = document.digest()
            if key in seen:
                taken.leave_out("repeated word for word")
                continue
            _check_form(document, counts, source)
            if (fitting := budget.fit(document)) is not None:
                seen |= {key, fitting.digest()}
                digest.update(fitting.digest())
                group = joined.add(fitting)
                sizes[group] = sizes.get(group, 0) + fitting.size
                hashed = "validation" if split_share(group) < validation_fraction else "train"
                split = given or hashed
                writers[split].add(fitting)
                counts.add(split, fitting)
                contradictions.add(fitting)
                on_bytes(budget.taken)
            if budget.done:
                break
    finally:
        for writer in writers.values():
            writer.close()
    counts.digest = f"sha256:{digest.hexdigest()}"
    if contradictions.count:
        taken.note("prefer the answer that another pair rejects", contradictions.count)
    _count(counts, taken, budget, intake)
    _check_not_empty(counts, budget, source, intake)
    check_intake(counts.intake, max_left_out, "Look at what was left out")
    if held_out is None:
        _settle_split(out, counts, sizes, joined, validation_fraction, source, shard_bytes)
    (out / "corpus.json").write_text(json.dumps({"format": 1, **counts.to_json()}, indent=1))
    return counts


def _sides(
    documents: Iterator[Document], held_out: Iterator[Document] | None
) -> Iterator[tuple[Document, str]]:
    """Each with its split, where that is given."""
    yield from ((document, "" if held_out is None else "train") for document in documents)
    yield from ((document, "validation") for document in held_out or ())


def _count(counts: CorpusCounts, taken: Intake, budget: Budget, intake: Sequence[Intake]) -> None:
    taken.unit = FORMS[counts.form].unit if counts.form else "documents"
    taken.taken = sum(counts.documents.values())
    for what, count in budget.notes().items():
        taken.note(what, count)
    counts.duplicates = taken.missing
    counts.intake = [*intake, taken]


def _settle_split(
    out: Path,
    counts: CorpusCounts,
    sizes: Mapping[bytes, int],
    joined: Joined,
    fraction: float,
    source: str,
    shard_bytes: int,
) -> None:
    """Split anew where the hash alone did not hold out about that share."""
    sides = settled(sizes, fraction, counts.form, joined)
    if sides != by_hash(sizes, fraction):
        counts.documents, counts.bytes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        writers = {split: ShardWriter(out / f"{split}-anew", shard_bytes) for split in SPLITS}
        for before in SPLITS:
            for document in read_split(out, before):
                for split, part in sides.of(document):
                    writers[split].add(part)
                    counts.add(split, part)
        for split, writer in writers.items():
            writer.close()
            shutil.rmtree(out / split)
            (out / f"{split}-anew").rename(out / split)
    if fraction > 0 and not counts.documents["validation"]:
        what = "short text" if counts.form == "text" else "prompt"
        if any(map(joined.is_group, sizes)):
            what = "group of rows that stay together (by split_group and by prompt)"
        raise InvalidArgument(
            f"corpus {source} has a single {what}, so none can be held out for validation; add "
            "others, or set validation_fraction to 0",
            field="validation_fraction",
        )


def _check_form(document: Document, counts: CorpusCounts, source: str) -> None:
    if counts.form and document.form != counts.form:
        raise InvalidArgument(
            f"corpus {source} mixes {FORMS[counts.form].called} and "
            f"{FORMS[document.form].called}, first in {document.where or source}; make two "
            "corpora of them",
            field="corpus_dir",
        )
    counts.form = document.form


def _check_not_empty(
    counts: CorpusCounts, budget: Budget, source: str, intake: Sequence[Intake]
) -> None:
    if of := next((one for one in intake if one.unit == "paragraphs"), None):
        if counts.documents["train"]:
            return
        measured = counts.documents["validation"]
        raise InvalidArgument(
            f"of the text of {source} comes nothing to learn from"
            f"{f', and {measured:,} to measure' if measured else ''}: {of.line()}. Passages need "
            f"{needed()}; give text that has such, or chats or pairs by corpus_dir",
            field="passages",
        )
    if any(counts.documents.values()):
        return
    if budget.smallest:
        raise InvalidArgument(
            f"corpus {source}: max_bytes is {budget.most:,}, and the smallest of the "
            f"{FORMS[counts.form].unit} that were read has {budget.smallest:,} bytes; set "
            "max_bytes to at least that",
            field="max_bytes",
        )
    if any(one.unit == "prompts" for one in intake):
        raise InvalidArgument(
            f"of the samples {source} none was selected: {intake[0].line()}. Make margin smaller, "
            "or sample more or more varied answers (samples, temperature)",
            field="samples",
        )
    raise InvalidArgument(
        f"corpus {source} is empty: its files hold no text. Put UTF-8 text there",
        field="corpus_dir",
    )


def read_split(corpus: Path, split: str) -> Iterator[Document]:
    """The documents of one split of a corpus artifact, in order."""
    for path in sorted((corpus / split).glob("documents-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield parse_document(line, f"{path}:{number}")
