"""What import takes, serving opens; what takes nothing from a model is told and no error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer

from checkpoints import CHATML, byte_tokenizer, random_llama
from plinth.models.importer import import_source
from plinth.models.publish import import_model
from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.shared.store import ArtifactStore
from plinth.tokenizer.codec import Codec

BYTES, SPACE = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}, "\u2581"
PIECES = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


DECODERS = {
    "none": None,
    "bytes": BYTES,
    "bytes in a sequence": sequence(BYTES),
    "bytes in two": sequence(sequence(BYTES)),
    "bytes and more": sequence(BYTES, STRIP),
    "nothing in a sequence": sequence(),
    "pieces": sequence(*PIECES),
    "pieces, stripped": sequence(*PIECES, STRIP),
    "pieces, stripped twice": sequence(*PIECES, {**STRIP, "start": 2}),
    "pieces nested": sequence(sequence(*PIECES[:2]), PIECES[2]),
    "words": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "suffixes": {"type": "BPEDecoder", "suffix": "</w>"},
    "spaces": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always"},
}


def model(kind: str, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    words = {"type": kind, "vocab": dict(vocabulary), "unk_token": "<|endoftext|>"}
    pieces = [[token, -1.0] for token in sorted(vocabulary, key=lambda t: vocabulary[t])]
    return {
        "BPE": {"type": "BPE", "vocab": dict(vocabulary), "merges": []},
        "Unigram": {"type": "Unigram", "vocab": pieces, "unk_id": 0, "byte_fallback": False},
        "an old Unigram": {"vocab": pieces, "unk_id": 0},
        "WordLevel": words,
        "WordPiece": {**words, "continuing_subword_prefix": "##", "max_input_chars_per_word": 9},
    }[kind]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(random_llama(tmp_path_factory.mktemp("hf"), layers=1, hidden=16))


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except PlinthError as error:
        return f"{error.code} {error.reason}"
    return "OK"


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "an old Unigram", "WordLevel", "WordPiece"])
def test_import_takes_what_serving_opens(kind: str, source: Path, tmp_path: Path) -> None:
    path = source / "tokenizer.json"
    before = path.read_text()
    description = json.loads(before)
    vocabulary = description["model"]["vocab"]
    taken = set()
    try:
        for name, decoder in DECODERS.items():
            changed = {"model": model(kind, vocabulary), "decoder": decoder}
            path.write_text(json.dumps(description | changed))
            made = tmp_path / name
            imported = outcome(lambda made=made: import_source(str(source), made))
            assert imported == outcome(lambda: Codec(source)), name
            if imported == "OK":
                taken.add(name)
                whole = Tokenizer.from_file(str(path)).decode([5, 9, 200])
                assert Codec(made).decode([5, 9, 200]) == whole.rstrip("\ufffd"), name
            else:
                assert not made.exists()
    finally:
        path.write_text(before)
    whole = {"bytes", "bytes in a sequence", "bytes in two"}
    pieces = {"pieces", "pieces, stripped", "pieces nested"}
    assert taken == (whole | pieces if kind == "BPE" else set())


def copy(source: Path, to: Path) -> Path:
    to.mkdir()
    for path in source.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("README.md", "---\nlicense: [apache-2.0, mit\ntags: :\n---\n", "not YAML"),
        ("README.md", "---\nlicense: mit\ndate: 2024-13-45\n---\n", ""),
        ("README.md", f"---\nlicense: mit\ntags: {nested(3000)}\n---\n", "not YAML"),
        ("README.md", "---\nlicense: {a: b}\n---\n", ""),
        ("README.md", "no header", ""),
        ("chat_template.jinja", "{% for m in messages %}\n{{ m.content }", "line 2"),
        ("chat_template.jinja", "{{ " + nested(5000) + " }}", "nests too deeply"),
        ("chat_template.jinja", "{% generation %}a{% endgeneration %}{% break %}", ""),
    ],
)
def test_what_takes_nothing_from_a_model_is_told(
    name: str, content: str, told: str, source: Path, tmp_path: Path
) -> None:
    folder = copy(source, tmp_path / "hf")
    (folder / name).write_text(content)
    imported = import_source(str(folder), tmp_path / "made")
    assert bool(told) == bool(imported.warnings)
    assert all(told in warning for warning in imported.warnings)
    assert str(tmp_path) not in json.dumps(imported.metadata())
    assert imported.license == ("mit" if "mit\ndate" in content else "")
    assert Codec(imported.folder).decode(Codec(folder).encode("x")) == "x"


def test_templates_without_a_default_are_told(source: Path, tmp_path: Path) -> None:
    folder = copy(source, tmp_path / "hf")
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    before = json.loads(path.read_text())
    templates = [{"name": "tool_use", "template": "{{ tools }}"}]
    path.write_text(json.dumps(before | {"chat_template": templates}))
    (warning,) = import_source(str(folder), tmp_path / "told").warnings
    assert "named 'default'" in warning
    templates.append({"name": "default", "template": "{{ messages }}"})
    path.write_text(json.dumps(before | {"chat_template": templates}))
    imported = import_source(str(folder), tmp_path / "made")
    assert not imported.warnings
    assert Codec(imported.folder).chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # It says what ends an answer.
        ("generation_config.json", "{"),
        # These say which tokens are special.
        ("special_tokens_map.json", "[]"),
        ("tokenizer_config.json", "{'eos_token': None}"),
        ("tokenizer_config.json", '{"additional_special_tokens": 5}'),
        ("tokenizer_config.json", '{"extra_special_tokens": "<a>"}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"chat_template": ["{{ messages }}"]}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("tokenizer.json", '{"added_tokens": ["<a>"], "model": {"type": "BPE"}}'),
        ("tokenizer.json", '{"added_tokens": 5, "model": {"type": "BPE"}}'),
        ("tokenizer.json", '{"model": [1]}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        ("tokenizer.json", nested(100_000)),
        ("chat_template.jinja", b"{{ messages }} \xff"),
        ("chat_template.json", b"\xff"),
    ],
)
def test_what_says_how_a_model_is_used_must_be_readable(
    name: str, content: str | bytes, source: Path, tmp_path: Path
) -> None:
    folder = copy(source, tmp_path / "hf")
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgument) as caught:
        import_source(str(folder), tmp_path / "out" / "made")
    assert name.removesuffix("n") in caught.value.message or "tokenizer.json" in str(caught.value)
    assert "made" not in caught.value.message
    assert list((tmp_path / "out").iterdir()) == []


def padded(source: Path, to: Path, token: AddedToken, **config: object) -> Path:
    """A model of as many embeddings as its tokenizer had before `token` was added."""
    folder = byte_tokenizer(random_llama(to, layers=1, hidden=16, vocab_size=259))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))
    before = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(before | config))
    return folder


PAD = AddedToken("[PAD]", special=True, normalized=False)


@pytest.mark.parametrize(
    "config",
    [
        {"pad_token": "[PAD]"},
        {"pad_token": {"content": "[PAD]", "special": True}, "mask_token": "[PAD]"},
        {
            "pad_token": "[PAD]",
            "extra_special_tokens": ["[PAD]", "<|im_end|>"],
            "added_tokens_decoder": {"259": {"content": "[PAD]", "special": True}},
        },
    ],
)
def test_a_padding_beyond_the_embeddings_is_told_and_left_out(
    config: dict[str, object], source: Path, tmp_path: Path, store: ArtifactStore
) -> None:
    folder = padded(source, tmp_path / "hf", PAD, **config)
    record = import_model(store, str(folder), "padded", workspace=tmp_path / "work")
    (warning,) = record.manifest["extra"]["warnings"]
    assert "'[PAD]' (id 259) has no embedding, the model has 259" in warning
    made = store.fetch(record)
    codec, reference = Codec(made), transformers.AutoTokenizer.from_pretrained(made)
    for text in ("a[PAD]b<|im_end|>", "é 1"):
        ids = codec.encode(text, parse_special=True)
        assert max(ids) < 259
        assert ids == reference(text).input_ids
        assert codec.decode(ids) == text
    assert len(reference) == 259
    assert codec.chat_template == CHATML


@pytest.mark.parametrize(
    ("token", "config"),
    [
        (PAD, {}),
        (PAD, {"pad_token": "[PAD]", "eos_token": "[PAD]"}),
        (AddedToken("<think>", special=False), {"pad_token": "<|im_end|>"}),
        (AddedToken("<|im_start|>2"), {"pad_token": "[PAD]"}),
    ],
)
def test_a_token_that_a_text_may_hold_needs_an_embedding(
    token: AddedToken, config: dict[str, object], source: Path, tmp_path: Path
) -> None:
    folder = padded(source, tmp_path / "hf", token, **config)
    with pytest.raises(InvalidArgument, match="token id 259 has no embedding"):
        import_source(str(folder), tmp_path / "made")


def test_a_padding_that_the_template_writes_needs_an_embedding(
    source: Path, tmp_path: Path
) -> None:
    folder = padded(source, tmp_path / "hf", PAD, pad_token="[PAD]")
    (folder / "chat_template.jinja").write_text("{{ '[PAD]' }}{{ messages[0].content }}")
    with pytest.raises(InvalidArgument, match="token id 259 has no embedding"):
        import_source(str(folder), tmp_path / "made")


_ODD = [None, True, -1, "x", [], {}, [[]], ["x"], {"type": "X"}]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value something else may stand, as far as there are few of a kind."""
    within = [path] if path else []
    if isinstance(value, dict):
        for key in list(value) if len(value) < 20 else list(value)[:2]:
            within += _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 2)):
            within += _places(value[index], (*path, index))
    return within


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_whatever_a_file_holds_is_served_or_refused_in_words(name: str, tmp_path: Path) -> None:
    """By the function that import asks as well; anything but a PlinthError is a crash of both."""
    byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    whole = json.loads((tmp_path / name).read_text())
    for *path, last in _places(whole):
        for odd in _ODD:
            changed = json.loads(json.dumps(whole))
            at = changed
            for key in path:
                at = at[key]
            at[last] = odd
            (tmp_path / name).write_text(json.dumps(changed))
            try:
                codec = Codec(tmp_path)
                codec.decode(codec.encode("a <|im_end|> b", parse_special=True), skip_special=True)
            except PlinthError:
                continue
