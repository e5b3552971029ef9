"""Metadata of GGUF files: what is said by default, what is refused by name, and hostile values.

The defaults are llama.cpp's: src/llama-model.cpp (load_hparams), src/llama-vocab.cpp (load).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from checkpoints import random_gpt2, random_llama
from gguf_files import write_gguf
from plinth.kernels.training import SdpaBackend
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.gguf.model import GgufModel
from plinth.models.gguf.vocabulary import build_tokenizer
from plinth.models.hf.folder import read_config
from plinth.models.importer import import_source
from plinth.models.rope import RopeScaling
from plinth.shared.errors import InvalidArgument

HOSTILE = (
    *(float("nan"), float("inf"), 0, 0.0, -1, -1.0, 1, 2.5, 1e-300, 1e39, 1e308, 2**31, 2**62),
    *("8", "", True, [1]),
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return random_llama(folder, layers=1, hidden=16, intermediate=16, vocab_size=260)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gpt2(tmp_path_factory.mktemp("gpt2"), layers=1, hidden=16, vocab_size=260)


def logits_are_finite(config: ModelConfig) -> bool:
    """Of the context's last tokens."""
    decoder = Decoder(config)
    decoder.init_weights(0)
    length = min(4, config.context)
    backend = SdpaBackend(1, length)
    with torch.no_grad():
        positions = torch.arange(config.context)[-length:]
        hidden = decoder(torch.zeros(length, dtype=torch.long), positions, backend)
        return bool(torch.isfinite(decoder.logits(hidden, backend)).all())


def opened(folder: Path, tmp_path: Path, extra: dict[str, Any], **changes: Any) -> GgufModel:
    return GgufModel(write_gguf(folder, tmp_path / "model.gguf", extra=extra, **changes))


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({}, None),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, 2.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "linear"}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, None),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "linear"}, None),
    ],
)
def test_a_factor_without_a_type_is_linear(
    extra: dict[str, Any], factor: float | None, llama: Path, tmp_path: Path
) -> None:
    model = opened(llama, tmp_path, {f"llama.{key}": value for key, value in extra.items()})
    wanted = None if factor is None else RopeScaling("linear", factor, original_context=512)
    config = model.config()
    assert config.ropes[0].scaling == wanted
    assert config.context == 512 * (factor or 1)


@pytest.mark.parametrize(
    ("pre", "extra", "ids"),
    [
        ("llama-bpe", {}, ["<|endoftext|>", "a"]),
        ("llama3", {}, ["<|endoftext|>", "a"]),
        ("falcon3", {}, ["<|endoftext|>", "a"]),
        ("llama-bpe", {"add_bos_token": False}, ["a"]),
        ("gpt-2", {}, ["a"]),
        ("smollm", {}, ["a"]),
        ("qwen2", {}, ["a"]),
        ("smollm", {"add_bos_token": True}, ["<|endoftext|>", "a"]),
        ("smollm", {"add_eos_token": True}, ["a", "<|im_end|>"]),
    ],
)
def test_bos_is_added_where_the_pre_tokenizer_adds_it(
    pre: str, extra: dict[str, Any], ids: list[str], llama: Path, tmp_path: Path
) -> None:
    changed = {f"tokenizer.ggml.{key}": value for key, value in extra.items()}
    tokenizer = build_tokenizer(opened(llama, tmp_path, changed, pre=pre))
    assert tokenizer.encode("a").tokens == ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.scale", 1.0),
        ("attention.sliding_window", 16),
        ("attention.sliding_window_pattern", [True]),
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("logit_scale", 0.5),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.2),
        ("final_logit_softcapping", 30.0),
        ("expert_count", -1),
        ("expert_used_count", 2),
        ("use_parallel_residual", True),
        ("tensor_data_layout", "another"),
        ("rope.scaling.attn_factor", 0.5),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.type", "dynamic"),
        ("rope.dimension_count", 2),
        ("attention.value_length", 8),
        ("attention.scale", "much"),
        ("something.new", 1),
    ],
)
def test_keys_that_change_the_mathematics_are_refused(
    key: str, value: Any, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=f"llama.{key}"):
        opened(llama, tmp_path, {f"llama.{key}": value}).config()


def test_every_name_of_the_format_is_read_or_asks_for_what_is_computed(
    llama: Path, tmp_path: Path
) -> None:
    """All the keys that the gguf package knows under an architecture, with a value of none."""
    plain = opened(llama, tmp_path, {}).config()
    names: list[str] = []
    classes = [gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM, gguf.Keys.WKV]
    for group in classes:
        names += [name for name in vars(group).values() if isinstance(name, str)]
    names = [name.replace("{arch}", "llama") for name in names if name.startswith("{arch}.")]
    assert len(names) > 60
    taken = set()
    for name in names:
        try:
            config = opened(llama, tmp_path, {name: 5}).config()
        except InvalidArgument as error:
            # With experts it's another family's file, which lacks the rest of what it needs.
            lacking = {"llama.expert_count": "llama.expert_used_count"}.get(name, name)
            assert name in error.message or lacking in error.message
        else:
            taken.add(name.removeprefix("llama."))
            differs = {field for field in vars(plain) if vars(plain)[field] != vars(config)[field]}
            assert len(differs) <= 1
    assert taken <= {
        *("context_length", "feed_forward_length", "block_count", "vocab_size", "pooling_type"),
        "embedding_length",  # the tensors say otherwise
        *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
        "attention.layer_norm_epsilon",  # a Llama has the other norm
    }


def test_harmless_keys_are_taken(llama: Path, tmp_path: Path) -> None:
    harmless = {
        "llama.vocab_size": 260,
        "llama.attention.scale": 0.5,  # one over the root of a head of 4
        "llama.attention.causal": True,
        "llama.attention.sliding_window": 512,
        "llama.expert_count": 0,
        "llama.logit_scale": 1.0,
        "llama.tensor_data_layout": "Meta AI original pth",
        "llama.rope.scaling.original_context_length": 512,
        "general.anything": "x",
        "quantize.imatrix.file": "x",
        "tokenizer.ggml.add_space_prefix": False,
    }
    plain = opened(llama, tmp_path, {}).config()
    assert opened(llama, tmp_path, harmless).config() == plain


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_value_of_any_key_is_refused_by_name_or_computes(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    plain = opened(folder, tmp_path, {})
    keys = [key for key in plain.file.metadata if key.startswith(f"{family}.")]
    keys += [f"{family}.rope.scaling.factor", f"{family}.rope.scaling.type"]
    keys += [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding")]
    for key in keys:
        for value in HOSTILE:
            try:
                config = opened(folder, tmp_path, {key: value}).config()
            except InvalidArgument as error:
                assert key in error.message or "head_count" in error.message, error.message
            else:
                assert logits_are_finite(config)


def test_a_table_of_one_axis_and_names_cut_short_are_typed_errors(tmp_path: Path) -> None:
    folder = random_llama(tmp_path / "hf", layers=1)
    data = write_gguf(folder, tmp_path / "model.gguf").read_bytes()
    for old, new in ((b"blk.0.ffn_up.weight", b"blk.00000000.weight"),):
        (tmp_path / "bad.gguf").write_bytes(data.replace(old, new))
        model = GgufModel(tmp_path / "bad.gguf")
        with pytest.raises(InvalidArgument, match=new.decode()):
            model.tensors(model.config())


def test_a_padding_of_no_token_is_told_and_left_out(llama: Path, tmp_path: Path) -> None:
    key = "tokenizer.ggml.padding_token_id"
    path = opened(llama, tmp_path, {key: 99_999}).path
    imported = import_source(str(path), tmp_path / "made")
    assert imported.warnings == (f"{key} is 99999, outside the vocabulary of 260; left out",)
    assert "pad_token" not in json.loads((imported.folder / "tokenizer_config.json").read_text())
    assert read_config(imported.folder).pad_id is None
    assert opened(llama, tmp_path, {key: 2}).config().pad_id == 2
