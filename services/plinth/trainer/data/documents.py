"""Documents, and how a folder of files becomes a stream of them.

A document is plain text, a list of chat messages, or a preference pair (`messages.py`). One file
is one document, except that a line `<|endoftext|>` ends one, that each line of a `.jsonl` file is
one, and that a long text is cut at a blank line, so that memory stays bounded and a single big file
can still be split for validation.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, cast

from plinth.shared.corpus_folder import SUFFIXES, CorpusFolder, kind_of
from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.shared.messages import FROM_UTF16, PAGE, TO_UTF8, parse_flag, parse_optional
from plinth.shared.rows import JSON_ARRAY, parse_row, why_no_json
from plinth.shared.splits import prompt_key, text_key

BOUNDARY = "<|endoftext|>"

CUT_CHARACTERS = 64 * 1024  # a text document is cut at the first blank line after so many
MAX_CHARACTERS = 2 * CUT_CHARACTERS  # and anywhere after so many
MAX_LINE_BYTES = 64 * 1024 * 1024  # of one JSON line
_FLAGS = ("cut_off", "rejected_cut_off")


@dataclass(frozen=True)
class Document:
    """Text, or messages ((role, content), …); never both.

    With `rejected` the messages are a preference pair: their last one, the assistant's, was
    preferred to an answer with that content. `source` says by whom ("rule:truncated"). `cut_off`
    and `rejected_cut_off`: the last answer, or the one with that content, was ended by its length,
    so that no token ends it. Documents of one `split_group` are held out together, whatever they
    ask.
    """

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    rejected: str | None = None
    source: str = ""
    cut_off: bool = False
    rejected_cut_off: bool = False
    split_group: str = ""
    where: str = field(default="", compare=False)  # file and line that it was read from

    @property
    def form(self) -> str:
        """ "text", "messages" or "pairs"."""
        if self.rejected is not None:
            return "pairs"
        return "messages" if self.messages else "text"

    @property
    def size(self) -> int:
        """UTF-8 bytes of what people wrote."""
        if self.messages:
            written = sum(len(content.encode()) for _, content in self.messages)
            return written + len((self.rejected or "").encode())
        return len(self.text.encode())

    def to_json(self) -> str:
        """One line of a corpus shard; equal documents give equal lines."""
        value = self._value()
        if self.split_group:
            value["split_group"] = self.split_group
        return json.dumps(value, ensure_ascii=False)

    def _value(self) -> dict[str, Any]:
        if not self.messages:
            return {"text": self.text}
        turns = [{"role": role, "content": content} for role, content in self.messages]
        flags = {name: True for name in _FLAGS if getattr(self, name)}
        if self.rejected is None:
            return {"messages": turns, **flags}
        return {
            "prompt": turns[:-1],
            "chosen": turns[-1:],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "source": self.source,
            **flags,
        }

    def digest(self) -> bytes:
        """16 bytes that name the content: for de-duplication."""
        value = json.dumps(self._value(), ensure_ascii=False)
        return blake2b(value.encode(), digest_size=16).digest()

    def split_key(self) -> bytes:
        """16 bytes that decide what is held out: of the group, or else of the prompt."""
        return text_key(f"group {self.split_group}") if self.split_group else self.prompt_key()

    def prompt_key(self) -> bytes:
        """16 bytes that documents of one prompt share."""
        return prompt_key(self.messages) if self.messages else text_key(self.text)

    @property
    def opening_words(self) -> str:
        """What its prompt key is of, for people."""
        if not self.messages:
            return self.text
        return next((text for role, text in self.messages if role == "user"), "")


def parse_document(line: str, where: str) -> Document:
    """One JSON line as a document. `where` ("file:line") goes into the error."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as wrong:
        array = f". {JSON_ARRAY}" if line.lstrip().startswith("[") else ""
        raise InvalidArgument(
            f"{where}: not JSON ({why_no_json(wrong)}); each line must be an object, see "
            f"{PAGE}{array}"
        ) from wrong
    row = parse_row(value, where)
    cut_off, rejected_cut_off = (parse_flag(value, where, name) for name in _FLAGS)
    group = parse_optional(value, where, "split_group")
    return Document(
        row.text,
        row.messages,
        row.rejected,
        row.source,
        cut_off,
        rejected_cut_off,
        split_group=group,
        where=where,
    )


def check_folder(found: Path, said: str | Path, *, field: str) -> None:
    """InvalidArgument unless the path `said`, whose links lead to `found`, is a folder."""
    if found.is_dir():
        return
    if not found.exists():
        why = "does not exist on the trainer's machine"
    else:
        why = f"is a file; name the folder that it lies in: its {'/'.join(SUFFIXES)} files are read"
    raise InvalidArgument(f"corpus folder {said} {why}", field=field)


def corpus_files(
    folder: Path, check: Callable[[Path], None] = lambda _: None
) -> tuple[list[Path], Intake]:
    """The files of a corpus folder in a fixed order, and what else is there; an error names what is
    wrong with it. `check` raises for what must not be read."""
    check_folder(folder, folder, field="corpus_dir")
    found = CorpusFolder(folder, check)
    if not found.files:
        others = ", ".join(f"{count:,} {why}" for why, count in found.others.most_common())
        json_array = f". {JSON_ARRAY}" if "of kind .json" in found.others else ""
        raise InvalidArgument(
            f"corpus folder {folder} has no {'/'.join(SUFFIXES)} file (or .gz of one); "
            f"{f'its files are: {others}' if others else 'it is empty'}. Put UTF-8 text there"
            f"{json_array}",
            field="corpus_dir",
        )
    return found.files, Intake("files", len(found.files), dict(found.others))


def read_files(files: Iterable[Path], check: Callable[[Path], None]) -> Iterator[Document]:
    """All documents of some files, file by file. `check` raises for one that must not be read."""
    for path in files:
        check(path)
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file. Raises InvalidArgument with the file's name and the remedy."""
    with _open(path) as stream:
        try:
            if kind_of(path) == ".jsonl":
                yield from _json_lines(stream, path)
            else:
                yield from cut(_decoded(stream, path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as wrong:
            raise InvalidArgument(
                f"{path}: not a complete gzip file ({wrong}); compress it again, or remove it"
            ) from wrong


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _json_lines(stream: IO[bytes], path: Path) -> Iterator[Document]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{path}:{number}"
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidArgument(f"{where}: a line is longer than {MAX_LINE_BYTES} bytes")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as wrong:
            raise _not_text(where, str(wrong)) from wrong
        if line.strip():
            yield parse_document(line, where)


def _decoded(stream: IO[bytes], path: Path) -> Iterator[str]:
    """Pieces of text, newlines made one, checked to be text at all."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    pending, done = "", False
    while not done:
        raw = stream.read(1 << 16)
        done = not raw
        if b"\0" in raw:
            raise _not_text(str(path), "it holds NUL bytes", FROM_UTF16)
        try:
            text = pending + decoder.decode(raw, final=done)
        except UnicodeDecodeError as wrong:
            raise _not_text(str(path), str(wrong)) from wrong
        # A lone "\r" at the end may be half of a "\r\n".
        pending = "\r" if text.endswith("\r") and not done else ""
        yield text.removesuffix(pending).replace("\r\n", "\n")


def _not_text(where: str, why: str, remedy: str = TO_UTF8) -> InvalidArgument:
    return InvalidArgument(
        f"{where}: not UTF-8 text ({why[:120]}); {remedy}; or take it out of the corpus folder",
        field="corpus_dir",
    )


def cut(pieces: Iterator[str]) -> Iterator[Document]:
    """Pieces of one text as documents: at boundary lines, and at blank lines when it is long."""
    lines: list[str] = []
    size = 0
    for line in _lines(pieces):
        boundary = line.strip() == BOUNDARY
        blank = not line.strip()
        if boundary or (blank and size >= CUT_CHARACTERS) or size + len(line) > MAX_CHARACTERS:
            yield from _whole(lines)
            lines, size = [], 0
        if not boundary:
            lines.append(line)
            size += len(line)
    yield from _whole(lines)


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Lines with their ends; one without an end is given out in bounded parts."""
    rest = ""
    for piece in pieces:
        *complete, rest = (rest + piece).split("\n")
        for line in complete:
            yield line + "\n"
        if len(rest) > CUT_CHARACTERS:
            yield rest
            rest = ""
    if rest:
        yield rest


def _whole(lines: list[str]) -> Iterator[Document]:
    text = "".join(lines).strip("\n")
    if text.strip():
        yield Document(text=text)
