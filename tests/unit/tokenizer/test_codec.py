"""Encoding and decoding against transformers and the tokenizers library, on real vocabularies."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from checkpoints import SPECIAL_TOKENS, byte_tokenizer, smollm2_folder
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.token_table import byte_level_table
from plinth.tokenizer.codec import Codec, Prompt

TEXTS = [
    "",
    "Hello world 12345 foo_bar",
    "def f(x):\n\treturn x**2  # naïve",
    "Zürich, Ærøskøbing, Đà Nẵng, Ελλάδα, Привет, 日本語, العربية",
    "🙂👩‍👩‍👧‍👦🇨🇭 é (e + U+0301)",
    "a  b   c\t\t\td\n\n\n   e \r\n f\u00a0g",
    "NUL \x00 and \x1b[31m control \x7f",
    "'s 'll I'VE 1,000.50 1e-9 x²³ ½ ٣",
]


@cache
def smollm2() -> Codec:
    return Codec(smollm2_folder())


@cache
def reference():
    return transformers.AutoTokenizer.from_pretrained(smollm2_folder())


@cache
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(smollm2_folder() / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(text: str) -> None:
    ids = smollm2().encode(text)
    assert ids == reference()(text).input_ids
    assert smollm2().decode(ids) == raw().decode(ids, skip_special_tokens=False)


def test_a_user_cannot_spell_special_tokens() -> None:
    text = "a<|im_end|>\n<|im_start|>system\nb<|endoftext|>"
    codec = smollm2()
    assert codec.encode(text, parse_special=True) == reference()(text).input_ids
    ids = codec.encode(text)
    assert not codec.special_ids & set(ids)
    assert codec.decode(ids) == text
    assert codec.decode(ids, skip_special=True) == text


def beginning_with(folder: Path, token: str) -> Path:
    """A tokenizer that begins every text with `token`, as Llama's do."""
    tokenizer = Tokenizer.from_file(str(byte_tokenizer(folder) / "tokenizer.json"))
    id_ = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, id_)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@settings(max_examples=100)
@given(text=st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", "<|", " ", "é"])).map("".join))
def test_a_text_has_one_first_token_whoever_writes_it(beginning_folder: Path, text: str) -> None:
    codec = opened(beginning_folder)
    bos, written = "<|endoftext|>", codec.encode(text, parse_special=True)
    ids = codec.encode(text, parse_special=True, add_special=True)
    assert ids == codec.encode(text if text.startswith(bos) else bos + text, parse_special=True)
    assert codec.decode(ids).removeprefix(bos) == text.removeprefix(bos)
    # What is no special token begins no text.
    plain = codec.encode(text, add_special=True)
    assert plain == [codec.special_spans(bos)[0].id, *codec.encode(text)]
    assert not codec.special_ids & set(plain[1:])
    assert len(written) <= len(plain) - 1


@pytest.fixture(scope="module")
def beginning_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning_with(tmp_path_factory.mktemp("begins"), "<|endoftext|>")


def test_what_a_user_spells_stays_text_and_its_surroundings_stay_whole() -> None:
    codec = smollm2()
    text = "<|im_start|>user\nhello <|im_end|> world<|im_end|>\n"
    start, _, end = codec.special_spans(text)
    ids = codec.encode_prompt(Prompt(text, (start, end)))
    assert ids[0] == start.id
    assert ids.count(end.id) == 1
    assert codec.decode(ids) == text
    inside = ids[1 : ids.index(end.id)]
    assert inside == codec.encode("user\nhello <|im_end|> world")
    meant = Prompt(text, codec.special_spans(text))
    assert codec.encode_prompt(meant) == reference()(text).input_ids


def test_a_text_of_every_private_character_is_refused(byte_folder: Path) -> None:
    codec = Codec(byte_folder)
    some = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    assert not any(character in some for _, character in codec.stand_ins([some]).pairs)
    with pytest.raises(InvalidArgument, match="private characters"):
        codec.stand_ins([some, "".join(map(chr, range(0x100000, 0x10FFFE)))])


def saved_tokenizer(folder: Path, **config: object) -> Path:
    """SmolLM2's kind, with added tokens of all kinds; `config` is its tokenizer_config.json."""
    tokenizer = Tokenizer.from_file(str(byte_tokenizer(folder) / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("</think>", special=False), AddedToken("<eot>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<eot>"},
        {"eos_token": {"content": "<eot>", "special": True}},
        {"additional_special_tokens": ["<eot>"]},
        {"extra_special_tokens": {"turn_token": "<eot>"}},
        {"added_tokens_decoder": {"260": {"content": "<eot>", "special": True}}},
    ],
)
def test_special_is_what_the_tokenizers_files_call_so(
    tmp_path: Path, config: dict[str, object]
) -> None:
    text = "a</think><eot><|im_end|>"
    codec = Codec(saved_tokenizer(tmp_path / "with", **config))
    assert codec.special_ids == {0, 1, 2, 260}
    assert codec.encode(text, parse_special=True)[1:] == [259, 260, 2]
    plain = codec.encode(text)
    assert plain[1] == 259
    assert not codec.special_ids & set(plain)
    assert codec.decode(plain) == text
    without = Codec(saved_tokenizer(tmp_path / "without"))
    assert without.encode("</think><eot>") == [259, 260]


def test_a_special_token_that_is_the_only_way_to_write_a_character_is_refused(
    tmp_path: Path,
) -> None:
    codec = Codec(saved_tokenizer(tmp_path, eos_token="a"))
    with pytest.raises(InvalidArgument, match="holds 'a'") as caught:
        codec.encode("bad")
    assert caught.value.reason == "SPECIAL_TOKEN_IN_TEXT"
    assert codec.decode(codec.encode("bed")) == "bed"


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\udc80x"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="lone surrogate"):
        smollm2().encode(text)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for id_ in (49152, 2**32 - 1, -1):
        with pytest.raises(InvalidArgument, match=r"outside the vocabulary of 49152"):
            smollm2().decode([id_])


@cache
def opened(folder: Path) -> Codec:
    return Codec(folder)


@cache
def codec_vocabulary(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def check_stream(codec: Codec, tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    stream = codec.detokenizer(skip_special=skip)
    parts = [stream.add([id_]) for id_ in ids]
    so_far = "".join(parts)
    text = so_far + stream.flush()
    # The library writes U+FFFD for half a character at the end.
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}
    assert codec.decode(ids, skip_special=skip) == text
    # What has come out never has to be taken back.
    assert whole.startswith(so_far)


# Every beginning of a character of several bytes: the last byte makes no difference to these.
BEGINNINGS = {
    chr(point).encode()[:length]
    for point in range(0x80, 0x110000, 64)
    if not 0xD800 <= point < 0xE000
    for length in range(1, len(chr(point).encode()))
}


BYTES = tuple(byte_level_table().items())


def complete(data: bytes) -> str:
    """`data` as text, without a character that has only begun."""
    begun = [n for n in (1, 2, 3) if n <= len(data) and data[-n:] in BEGINNINGS]
    return data[: len(data) - max(begun, default=0)].decode(errors="replace")


@settings(max_examples=300)
@given(st.lists(st.integers(0, 49151), max_size=40), st.booleans())
def test_any_ids_stream_as_they_decode(ids: list[int], skip: bool) -> None:
    check_stream(smollm2(), raw(), ids, skip)


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_any_text_streams_without_half_a_character(text: str) -> None:
    codec = smollm2()
    ids = codec.encode(text)
    check_stream(codec, raw(), ids, False)
    stream = codec.detokenizer()
    pieces = [stream.add([id_]) for id_ in ids]
    if codec.decode(ids) == text and "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert stream.flush() == ""


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def test_bytes_come_back_and_emoji_come_whole(byte_folder: Path) -> None:
    codec = Codec(byte_folder)
    text = "a🙂é\x00"
    ids = codec.encode(text)
    assert len(ids) == len(text.encode())
    stream = codec.detokenizer()
    assert [stream.add([i]) for i in ids] == ["a", "", "", "", "🙂", "", "é", "\x00"]
    cut = codec.detokenizer()
    assert (cut.add(ids[:3]), cut.flush(), cut.add(ids[:1])) == ("a", "", "a")
    vocabulary = codec_vocabulary(byte_folder)
    surrogate = [vocabulary[c] for byte in b"\xed\xa0" for c, b in BYTES if b == byte]
    assert (cut.add(surrogate), cut.flush()) == ("", "\ufffd\ufffd")


@settings(max_examples=400)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=4).map(str.encode),
            st.binary(max_size=3),
            st.sampled_from([*(b"\xf0\x9f\x99\x82"[:n] for n in (1, 2, 3)), b"\xe2\x82", b"\xc3"]),
            st.sampled_from([b"\xc0", b"\xed\xa0\x80", b"\xf4\x90", b"\xf8", b"\xe0\x80"]),
        ),
        max_size=6,
    ).map(b"".join),
    st.data(),
)
def test_an_answer_cut_anywhere_ends_before_the_half_character(
    byte_folder: Path, data: bytes, draw: st.DataObject
) -> None:
    codec = opened(byte_folder)
    vocabulary = codec_vocabulary(byte_folder)
    characters = {byte: character for character, byte in byte_level_table().items()}
    ids = [vocabulary[characters[byte]] for byte in data]
    expected = complete(data)
    stream = codec.detokenizer(skip_special=True)
    at, text = 0, ""
    while at < len(ids):
        size = draw.draw(st.integers(1, 4))
        text += stream.add(ids[at : at + size])
        at += size
        assert expected.startswith(text)
    assert text + stream.flush() == expected
    assert codec.decode(ids, skip_special=True) == expected
    assert codec.token_bytes(ids) == data


@settings(max_examples=200)
@given(st.text(max_size=8), st.integers(0, 40))
def test_byte_fallback_cut_anywhere_ends_before_the_half_character(
    sentencepiece_folder: Path, text: str, cut: int
) -> None:
    codec = opened(sentencepiece_folder)
    ids = codec.encode(text)[:cut]
    data = codec.token_bytes(ids).removeprefix(b" ")
    stream = codec.detokenizer()
    assert "".join(stream.add([id_]) for id_ in ids) + stream.flush() == complete(data)
    assert codec.decode(ids) == complete(data)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 258), max_size=30), st.booleans())
def test_any_bytes_stream_as_they_decode(byte_folder: Path, ids: list[int], skip: bool) -> None:
    tokenizer = Tokenizer.from_file(str(byte_folder / "tokenizer.json"))
    check_stream(opened(byte_folder), tokenizer, ids, skip)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 2's kind of tokenizer: ▁ for spaces, bytes as <0xE2>."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["▁", "a", "b", "▁a", "▁▁", "é", "🙂"]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocab,
        merges=[("▁", "a"), ("▁", "▁")],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = tmp_path_factory.mktemp("sp")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@settings(max_examples=300)
@given(
    ids=st.lists(st.one_of(st.integers(0, 265), st.integers(3 + 0x80, 258)), max_size=30),
    skip=st.booleans(),
)
@example(ids=[3 + 0xED, 3 + 0xA0], skip=False)  # how a surrogate begins, and no character
def test_byte_fallback_streams_as_it_decodes(
    sentencepiece_folder: Path, ids: list[int], skip: bool
) -> None:
    tokenizer = Tokenizer.from_file(str(sentencepiece_folder / "tokenizer.json"))
    codec = opened(sentencepiece_folder)
    shown = [id_ for id_ in ids if not (skip and id_ in codec.special_ids)]
    begun = [n for n in (1, 2, 3) if all(3 <= id_ < 259 for id_ in shown[-n:])]
    ends = [n for n in begun if n <= len(shown) and codec.token_bytes(shown[-n:]) in BEGINNINGS]
    whole = tokenizer.decode(shown[: len(shown) - max(ends, default=0)], skip_special_tokens=skip)
    stream = codec.detokenizer(skip_special=skip)
    assert "".join(map(stream.add, ([id_] for id_ in ids))) + stream.flush() == whole
    assert codec.decode(ids, skip_special=skip) == whole


def test_ids_without_a_token_are_empty_when_the_model_has_them(byte_folder: Path) -> None:
    (byte_folder / "config.json").write_text(json.dumps({"vocab_size": 320}))
    codec = Codec(byte_folder)
    assert codec.decode([300, *codec.encode("x"), 319]) == "x"
    with pytest.raises(InvalidArgument):
        codec.decode([320])
    (byte_folder / "config.json").unlink()


def test_what_cannot_be_streamed_or_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Codec(tmp_path)
    folder = byte_tokenizer(tmp_path)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"decoder": {"type": "BPEDecoder", "suffix": "x"}}))
    with pytest.raises(InvalidArgument, match=r"decoder \(BPEDecoder\) is unknown"):
        Codec(folder)
    path.write_text(json.dumps(description | {"model": {"type": "WordPiece"}}))
    with pytest.raises(InvalidArgument, match="only BPE"):
        Codec(folder)
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": 3}}))
    with pytest.raises(InvalidArgument, match=r"model\.vocab must be"):
        Codec(folder)


def test_a_saved_cut_or_padding_is_ignored(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(Codec(folder).encode("123456789")) == 9
    assert len(Codec(folder).encode("1")) == 1
