"""BPE training: deterministic, streamed, honest about what the data supports."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import transformers

from plinth.shared.errors import InvalidArgument
from plinth.tokenizer import vocabulary
from plinth.tokenizer.codec import Codec
from plinth.tokenizer.vocabulary import VocabularySpec, corpus_files, files_digest, save, train


def ignore(_: int) -> None:
    pass


def write_corpus(folder: Path, documents: int = 400, files: int = 3) -> Path:
    """Made-up words in made-up sentences, the same each time."""
    generator = random.Random(0)
    syllables = ["ka", "lo", "mi", "ne", "ru", "sto", "vä", "zen", "qi", "do"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(300)]
    (folder / "train").mkdir(parents=True)
    for number in range(files):
        with (folder / "train" / f"documents-{number:05d}.jsonl").open("w") as file:
            for i in range(documents // files):
                text = " ".join(generator.choices(words, k=40)) + f" {i} {generator.random()}\n"
                document = {"messages": [{"role": "user", "content": text}]} if i % 7 == 0 else None
                file.write(json.dumps(document or {"text": text}) + "\n")
    (folder / "validation").mkdir()
    (folder / "validation" / "documents-00000.jsonl").write_text(
        json.dumps({"text": "unseen " * 5000})
    )
    return folder


def test_transformers_opens_it_with_the_same_ids(tmp_path: Path) -> None:
    files = corpus_files(write_corpus(tmp_path / "corpus"))
    assert [f.parent.name for f in files] == ["train"] * 3
    spec = VocabularySpec(512)
    save(train(files, spec, ignore), spec, tmp_path / "tok")
    codec = Codec(tmp_path / "tok")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert len(reference) == 512
    for text in ("kalo mine 2024 x", "Zürich 🙂\t\n  \x00", "<|im_start|>user", ""):
        assert codec.encode(text, parse_special=True) == reference(text).input_ids
        assert codec.decode(codec.encode(text)) == text
    assert [reference.convert_tokens_to_ids(t) for t in vocabulary.SPECIAL_TOKENS] == [0, 1, 2]
    assert (reference.bos_token, reference.eos_token) == ("<|endoftext|>", "<|im_end|>")
    messages = [{"role": "user", "content": "kalo"}]
    assert reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nkalo<|im_end|>\n<|im_start|>assistant\n"
    )
    # Digits are spelled one by one, wherever they stand.
    assert len(codec.encode("2024")) == 4
    assert not any("unseen" in t for t in reference.get_vocab())


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path) -> None:
    files = corpus_files(write_corpus(tmp_path / "corpus"))
    spec = VocabularySpec(400)
    for name in ("a", "b"):
        save(train(files, spec, ignore), spec, tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert files_digest(files) == files_digest(corpus_files(tmp_path / "corpus"))
    digest = spec.digest(files_digest(files))
    assert digest == VocabularySpec(400).digest(files_digest(files))
    assert digest != VocabularySpec(401).digest(files_digest(files))
    assert digest != VocabularySpec(400, chat_template="x").digest(files_digest(files))


def test_progress_counts_the_bytes_read(tmp_path: Path) -> None:
    files = corpus_files(write_corpus(tmp_path / "corpus"))
    seen: list[int] = []
    train(files, VocabularySpec(300), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sum(path.stat().st_size for path in files)


def test_a_vocabulary_larger_than_the_data_supports_says_what_it_does(tmp_path: Path) -> None:
    files = corpus_files(write_corpus(tmp_path / "corpus"))
    with pytest.raises(InvalidArgument, match=r"vocab_size is 100,000.*supports") as refused:
        train(files, VocabularySpec(100_000), ignore)
    supported = int(refused.value.metadata["supported"])
    assert 300 < supported < 100_000
    train(files, VocabularySpec(supported), ignore)
    with pytest.raises(InvalidArgument, match="supports"):
        train(files, VocabularySpec(supported + 1), ignore)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x00\xff\xfe binary", r"documents-00000\.jsonl:1: not valid JSON"),
        (b'{"text": "a"}\n{"text": 3}\n', r"documents-00000\.jsonl:2: a document is"),
        (b'["text"]\n', "a document is"),
    ],
)
def test_a_bad_corpus_is_refused_by_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "documents-00000.jsonl").write_bytes(content)
    with pytest.raises(InvalidArgument, match=words):
        train(corpus_files(tmp_path), VocabularySpec(260), ignore)


def test_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no corpus"):
        corpus_files(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 259}, "vocab_size"),
        ({"vocab_size": 200_001}, "vocab_size"),
        ({"special_tokens": ("<a>", "<a>")}, "special_tokens"),
        ({"special_tokens": ("",)}, "special_tokens"),
        ({"special_tokens": ("e",)}, "special_tokens"),
        ({"vocab_size": 260, "special_tokens": tuple(f"<{i}>" for i in range(5))}, "vocab_size"),
    ],
)
def test_specs_are_checked(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        VocabularySpec(**({"vocab_size": 512} | changes))
    assert refused.value.field == field


def test_a_word_that_is_a_special_token_is_a_word_in_the_corpus_and_in_texts(
    tmp_path: Path,
) -> None:
    """Training merges its letters into it: what comes of that is not for texts."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [
        json.dumps({"text": f"thinking {n} <|endoftext|>\nthinking of {n}"}) for n in range(99)
    ]
    (corpus / "documents-0.jsonl").write_text("\n".join(lines))
    spec = VocabularySpec(275, ("<|endoftext|>", "thinking"))
    tokenizer = train(corpus_files(corpus), spec, lambda _: None)
    save(tokenizer, spec, tmp_path / "tokenizer")
    codec = Codec(tmp_path / "tokenizer")
    assert codec.special_ids == {0, 1}
    for text in ("thinking", "thinking of <|endoftext|>", "rethinking\nthinking"):
        ids = codec.encode(text)
        assert not codec.special_ids & set(ids)
        assert codec.decode(ids) == text
