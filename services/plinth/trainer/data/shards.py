"""Token shards on disk, read by memory map: the dataset artifact.

dataset.json             format, tokenizer, dtype, counts and digests (see `DatasetInfo`)
tokenizer/               the tokenizer's files, so that a dataset stands alone
<split>-00000.bin        ids, little-endian uint16 or uint32
<split>-00000.idx        int64 [documents + 1]: where each document begins, and the end
<split>-00000.mask.bin   not for plain text: uint8 per id, 1 where the model shall learn it, which
                         is an answer as `shared.answer_spans` has it
validation-bytes.bin     int64 per validation document: UTF-8 bytes of its text (with masks:
                         of its answers), for bits per byte
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.trainer.data.forms import FORMS

FORMAT = 3
# Before format 3 the form was told by an objective that it is for.
_FORM_OF = {"clm": "text", "sft": "messages", "pairs": "pairs", "prompts": "prompts"}
SHARD_TOKENS = 64 * 1024 * 1024

Ids = NDArray[np.int64]
Mask = NDArray[np.uint8]


@dataclass
class SplitInfo:
    """Counts of one split; `shards` holds {"file", "tokens", "documents"}."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DatasetInfo:
    """`dataset.json`."""

    # One of `FORMS`. All but "text" have masks; of "pairs", documents 2i are chosen and 2i + 1
    # rejected.
    form: str
    tokenizer: str  # artifact reference
    tokenizer_digest: str
    vocab_size: int
    end_of_text_id: int
    eos_id: int
    dtype: str
    splits: dict[str, SplitInfo]
    # What ends an answer here, the chat template's own first; of plain text, what ends a document.
    stop_ids: list[int] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)  # file → sha256
    format: int = FORMAT


def token_dtype(vocab_size: int) -> str:
    """The narrowest little-endian type that holds every id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class SplitWriter:
    """Appends the documents of one split; closes a shard once it is large enough."""

    def __init__(self, folder: Path, split: str, dtype: str, masked: bool, limit: int) -> None:
        self.info = SplitInfo()
        self._folder, self._split, self._dtype = folder, split, np.dtype(dtype)
        self._masked, self._limit = masked, limit
        self._files: list[IO[bytes]] = []
        self._offsets = [0]
        self._bytes: IO[bytes] | None = None
        if split == "validation":
            self._bytes = (folder / "validation-bytes.bin").open("wb")

    def add(self, ids: Sequence[int], size: int, mask: Sequence[int] | None = None) -> None:
        """One document: its ids, its UTF-8 bytes, and but for plain text its mask."""
        if not self._files:
            self._open()
        array = np.asarray(ids, dtype=self._dtype)
        self._files[0].write(array.tobytes())
        if self._masked:
            self._files[1].write(np.asarray(mask, dtype=np.uint8).tobytes())
        if self._bytes is not None:
            self._bytes.write(np.asarray([size], dtype="<i8").tobytes())
        self._offsets.append(self._offsets[-1] + len(array))
        self.info.documents += 1
        self.info.tokens += len(array)
        self.info.bytes += size
        if self._offsets[-1] >= self._limit:
            self._close_shard()

    def close(self) -> None:
        self._close_shard()
        if self._bytes is not None:
            self._bytes.close()

    def _stem(self) -> str:
        return f"{self._split}-{len(self.info.shards):05d}"

    def _open(self) -> None:
        names = [".bin", ".mask.bin"] if self._masked else [".bin"]
        self._files = [(self._folder / f"{self._stem()}{n}").open("wb") for n in names]
        self._offsets = [0]

    def _close_shard(self) -> None:
        if not self._files:
            return
        for file in self._files:
            file.close()
        self._files = []
        np.asarray(self._offsets, dtype="<i8").tofile(self._folder / f"{self._stem()}.idx")
        self.info.shards.append(
            {
                "file": f"{self._stem()}.bin",
                "tokens": self._offsets[-1],
                "documents": len(self._offsets) - 1,
            }
        )


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json` last, with the digests of all that it describes."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            info.digests[str(path.relative_to(folder))] = f"sha256:{digest.hexdigest()}"
    (folder / "dataset.json").write_text(json.dumps(asdict(info), indent=1))


def read_info(folder: Path) -> DatasetInfo:
    """Raises InvalidArgument for a folder that is no dataset of this format."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise InvalidArgument(f"{folder} is not a dataset: it has no dataset.json", field="dataset")
    value = json.loads(path.read_text())
    form = value.get("form") or _FORM_OF.get(value.pop("objective", ""), "")
    # Of format 1 the masks hold what a template writes behind an answer; plain text has none.
    readable = value.get("format") in (2, FORMAT) or (value.get("format"), form) == (1, "text")
    if not readable or form not in FORMS:
        raise InvalidArgument(
            f"{path}: a dataset of format {value.get('format')!r} and form {form!r} is not read, "
            f"this Plinth reads format {FORMAT}; prepare the dataset again",
            field="dataset",
        )
    value["form"] = form
    value["splits"] = {name: SplitInfo(**split) for name, split in value["splits"].items()}
    return DatasetInfo(**value)


class Split:
    """One split, seen as one run of tokens and as documents; nothing is read before it is used."""

    def __init__(self, folder: Path, name: str) -> None:
        self.info = read_info(folder)
        split = self.info.splits[name]
        self.tokens, self.documents = split.tokens, split.documents
        dtype = np.dtype(self.info.dtype)
        self._ids, self._masks, self._offsets = [], [], []
        for shard in split.shards:
            path = folder / shard["file"]
            self._ids.append(_mapped(path, dtype, shard["tokens"]))
            index = _mapped(path.with_suffix(".idx"), np.dtype("<i8"), shard["documents"] + 1)
            self._offsets.append(index)
            if self.info.form != "text":
                mask = _mapped(path.with_suffix(".mask.bin"), np.dtype("u1"), shard["tokens"])
                self._masks.append(mask)
        tokens = [shard["tokens"] for shard in split.shards]
        documents = [shard["documents"] for shard in split.shards]
        self._token_starts = np.concatenate(([0], np.cumsum(tokens, dtype=np.int64)))
        self._document_starts = np.concatenate(([0], np.cumsum(documents, dtype=np.int64)))
        self.document_bytes: NDArray[np.int64] | None = None
        if name == "validation":
            path = folder / "validation-bytes.bin"
            self.document_bytes = _mapped(path, np.dtype("<i8"), self.documents)

    def window(self, start: int, length: int) -> Ids:
        """`length` consecutive tokens from `start`, across shards."""
        if not 0 <= start <= start + length <= self.tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.tokens}")
        parts: list[Ids] = []
        shard = int(np.searchsorted(self._token_starts, start, side="right")) - 1
        while length > 0:
            offset = start - int(self._token_starts[shard])
            part = self._ids[shard][offset : offset + length].astype(np.int64)
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def document(self, number: int) -> tuple[Ids, Mask]:
        """Ids and mask (all ones without masks) of one document."""
        shard = int(np.searchsorted(self._document_starts, number, side="right")) - 1
        local = number - int(self._document_starts[shard])
        begin, end = (int(o) for o in self._offsets[shard][local : local + 2])
        ids = self._ids[shard][begin:end].astype(np.int64)
        if self._masks:
            return ids, np.asarray(self._masks[shard][begin:end])
        return ids, np.ones(len(ids), np.uint8)

    def lengths(self) -> Ids:
        """Tokens of each document [documents]."""
        if not self._offsets:
            return np.zeros(0, np.int64)
        return np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    expected = count * dtype.itemsize
    actual = path.stat().st_size if path.is_file() else -1
    if actual != expected:
        state = "is missing" if actual < 0 else f"has {actual} bytes instead of {expected}"
        # To prepare it again would help nothing: of the same inputs a run takes what is there.
        raise DataLoss(
            f"dataset file {path} {state}; restore the store from a backup: "
            "`plinth restore PLACE --only store --merge-store`"
        )
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))
