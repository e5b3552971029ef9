"""Held-out text comes whole; what is read from a model's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from plinth.coordinator.heldout import judge_by_ngram, read
from plinth.coordinator.scoring import context_length, end_ids, start_id
from plinth.models.ngram import ByteNgram
from plinth.shared.errors import DataLoss, FailedPrecondition


def _corpus(folder: Path, train: list[str], validation: list[str]) -> Path:
    for split, texts in (("train", train), ("validation", validation)):
        (folder / split).mkdir()
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / split / "documents-00000.jsonl").write_text("\n".join(lines))
    return folder


def test_the_yardstick_is_the_5gram_of_the_training_half(tmp_path: Path) -> None:
    train, held = ["abc abc abd"] * 5, ["abc abd", "xyz", "ü" * 50]
    corpus = _corpus(tmp_path, train, held)
    judged = judge_by_ngram(corpus, max_bytes=12)
    assert judged.documents == ("abc abd", "xyz")
    assert judged.size_bytes == 10
    model = ByteNgram(5).fit(text.encode() for text in train)
    wanted = model.bits_per_byte([b"abc abd", b"xyz"])
    assert math.isclose(judged.ngram_bits_per_byte, wanted)
    assert judge_by_ngram(corpus, max_bytes=1).documents == ("abc abd",)  # at least one


def test_nothing_held_out_and_no_text(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, ["a"], [])
    with pytest.raises(FailedPrecondition, match="validation_fraction"):
        judge_by_ngram(corpus, max_bytes=10)
    (corpus / "validation" / "documents-00001.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataLoss, match="line 1"):
        list(read(corpus, "validation"))


def test_a_model_ends_where_either_of_its_files_says(tmp_path: Path) -> None:
    assert end_ids(tmp_path) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert end_ids(tmp_path) == [5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5, 9]}')
    assert end_ids(tmp_path) == [7, 5, 9]


def test_what_is_read_from_a_models_config(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    assert start_id(tmp_path, {"eos_token_id": [5, 6], "bos_token_id": 1}) == 5
    assert start_id(tmp_path, {"bos_token_id": 0}) == 0
    assert context_length({"n_positions": 128}) == 128
    with pytest.raises(FailedPrecondition, match="eos_token_id"):
        start_id(tmp_path, {})
    with pytest.raises(FailedPrecondition, match="max_position"):
        context_length({})
    tokenizer.write_text('{"added_tokens": [{"id": 9, "content": "<|endoftext|>"}]}')
    assert start_id(tmp_path, {"eos_token_id": 5}) == 9
    # Without a separator, the tokenizer's end-of-sequence, which training puts between documents.
    tokenizer.write_text('{"added_tokens": [{"id": 7, "content": "</s>"}]}')
    for eos in ('"</s>"', '{"content": "</s>"}'):
        (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": {eos}}}')
        assert start_id(tmp_path, {"eos_token_id": [5, 7]}) == 7
    tokenizer.write_text("[")
    with pytest.raises(DataLoss, match=r"tokenizer\.json"):
        start_id(tmp_path, {"eos_token_id": 5})
