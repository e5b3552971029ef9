"""Text to ids and back for one tokenizer, and a tokenizer's own facts.

Text from users never turns into special tokens: it is encoded by a twin of the tokenizer that knows
none. Blocking and thread-safe; knows neither gRPC nor artifacts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models

from plinth.shared.errors import InvalidArgument
from plinth.shared.plain_text import MarkedText
from plinth.shared.tokenizer_folder import open_tokenizer_folder
from plinth.tokenizer.detokenizer import Detokenizer

# Unicode's private planes: no normalizer changes them, and nothing else is written in them.
_PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_PRIVATE_POINTS = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


@dataclass(frozen=True)
class Span:
    """A special token in a text: characters `start` to `end`, and its id."""

    start: int
    end: int
    id: int


@dataclass(frozen=True)
class Prompt:
    """A text and its special tokens, in order. All else in it is plain, whatever it spells."""

    text: str
    spans: tuple[Span, ...]


class StandIns:
    """A private character for each special token, and one more (`blank`) for any character."""

    def __init__(self, tokens: Mapping[str, int], texts: Iterable[str]) -> None:
        """`tokens`: content → id. None of the characters is in `texts`. InvalidArgument: no such
        characters are left."""
        used = {ord(character) for text in texts for character in _PRIVATE.findall(text)}
        free = [p for p in _PRIVATE_POINTS if p not in used] if used else _PRIVATE_POINTS
        if len(free) <= len(tokens):
            raise InvalidArgument(
                f"the text holds {len(used):,} of Unicode's private characters from U+F0000 on; "
                f"leave {len(tokens) + 1:,} of them out",
                field="messages",
            )
        drawn = secrets.SystemRandom().sample(free, len(tokens) + 1)
        self.blank, *characters = map(chr, drawn)
        pairs = zip(characters, tokens.items(), strict=True)
        self.tokens: dict[str, tuple[str, int]] = dict(pairs)
        self.pattern = re.compile(f"[{''.join(self.tokens)}]" if tokens else "(?!)")
        self.pairs = tuple((token, character) for character, (token, _) in self.tokens.items())

    def met_in(self, text: str) -> bool:
        """Whether `text` holds one of the characters."""
        return self.blank in text or self.pattern.search(text) is not None


class Codec:
    """One tokenizer folder, opened."""

    def __init__(self, folder: Path) -> None:
        """Raises NotFound (no tokenizer.json) and InvalidArgument (cannot be used)."""
        opened = open_tokenizer_folder(folder)
        self._description = opened.description
        self._tokenizer = opened.tokenizer
        self._plain = opened.plain
        self._table = opened.table
        self.chat_template = opened.chat_template
        self.token_names = opened.token_names
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token.content: id_ for id_, token in added.items()}
        self.special_contents = {id_: t.content for id_, t in added.items() if t.special}
        self.special_ids = frozenset(self.special_contents)
        self._stand_ins = self._new_stand_ins()
        # Ids that end a turn; found out by the first conversation (see `turn_ends`).
        self.stop_ids: tuple[int, ...] | None = None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokenizer's end-of-sequence: one id, or none."""
        eos = self._added.get(self.token_names.get("eos_token", ""))
        return () if eos is None else (eos,)

    def encode(
        self, text: str, *, parse_special: bool = False, add_special: bool = False
    ) -> list[int]:
        """Ids of `text`. `add_special` adds what the tokenizer adds by itself (a first token), if
        the text doesn't begin with it. `parse_special`: special tokens spelled in it are meant as
        such."""
        check_text(text)
        if not parse_special:
            return self._plain.encode(text, add_special=add_special)
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        added = list(encoding.special_tokens_mask)
        first = added.index(0) if 0 in added else 0
        # Nobody trains on a second first token: a text that begins with it has it already.
        return ids[first:] if ids[first : 2 * first] == ids[:first] else ids

    def has_special(self, ids: Sequence[int]) -> bool:
        """Whether any of `ids` is a special token; an unknown character is none."""
        return not (self.special_ids - {self._plain.unknown_id}).isdisjoint(ids)

    def stand_ins(self, texts: Iterable[str]) -> StandIns:
        """Characters for the special tokens, none of which is in `texts`."""
        texts = list(texts)
        if any(map(self._stand_ins.met_in, texts)):
            return self._new_stand_ins(texts)
        return self._stand_ins

    def special_spans(self, text: str) -> tuple[Span, ...]:
        """The special tokens that `text` spells for this tokenizer, its normalizer included."""
        encoding = self._spelled.encode(text, add_special_tokens=False)
        return tuple(
            Span(start, end, self._added[token])
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
            if self._added[token] in self.special_ids
        )

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: those of its text where that spells the prompt's special tokens and no
        others; otherwise what stands between them is encoded as plain text."""
        check_text(prompt.text)
        wanted = [span.id for span in prompt.spans]
        if self.special_spans(prompt.text) == prompt.spans:
            ids = self.encode(prompt.text, parse_special=True)
            unknown = self._plain.unknown_id
            if [i for i in ids if i in self.special_ids and i != unknown] == [
                i for i in wanted if i != unknown
            ]:
                return ids
        stand_ins = self.stand_ins([prompt.text])
        character = {token: character for token, character in stand_ins.pairs}
        parts, at = [], 0
        for span in prompt.spans:
            parts += [prompt.text[at : span.start], character[self.special_contents[span.id]]]
            at = span.end
        usual = stand_ins is self._stand_ins
        marked = self._marked if usual else self._plain.marked(stand_ins.pairs)
        return marked.encode("".join([*parts, prompt.text[at:]]))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 are U+FFFD, half a character at the end is not."""
        stream = self.detokenizer(skip_special=skip_special)
        return stream.add(ids) + stream.flush()

    def token_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` stand for, whether or not they are text."""
        return b"".join(map(self._table.bytes_of, ids))

    def detokenizer(self, *, skip_special: bool = False) -> Detokenizer:
        """A fresh stream from ids to text."""
        skipped = self.special_ids if skip_special else frozenset()
        return Detokenizer(self._table, skipped)

    def _new_stand_ins(self, texts: Iterable[str] = ()) -> StandIns:
        """None of them in the texts, an added token or the template."""
        tokens = {content: id_ for id_, content in self.special_contents.items()}
        return StandIns(tokens, [*texts, *self._added, self.chat_template or ""])

    @cached_property
    def _marked(self) -> MarkedText:
        return self._plain.marked(self._stand_ins.pairs)

    @cached_property
    def _spelled(self) -> Tokenizer:
        """Finds added tokens as the tokenizer does, and nothing else."""
        added = self._description["added_tokens"]
        vocabulary = {token["content"]: number for number, token in enumerate(added)}
        finder = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        finder.normalizer = self._tokenizer.normalizer
        for token in added:
            flags = {key: value for key, value in token.items() if key not in ("id", "content")}
            finder.add_tokens([AddedToken(token["content"], **flags)])
        return finder


def check_text(text: str) -> None:
    """InvalidArgument for what is no Unicode text: a lone surrogate. Control characters are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; it cannot be written as UTF-8",
            reason="INVALID_TEXT",
            field="texts",
        ) from error
