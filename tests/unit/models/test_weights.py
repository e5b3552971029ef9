"""Checkpoints in and out, against transformers; damaged ones end in an error that names them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from checkpoints import random_gpt2, random_llama
from plinth.kernels.training import SdpaBackend
from plinth.models.hf.folder import Checkpoint
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

KINDS = {
    "llama-gqa-tied": random_llama,
    "llama-untied-biases": lambda folder: random_llama(
        folder, tied=False, attention_bias=True, mlp_bias=True, kv_heads=4
    ),
    "llama-sharded": lambda folder: random_llama(folder, max_shard_size="100KB"),
    "llama-wide-heads": lambda folder: random_llama(folder, head_dim=32, kv_heads=1),
    "llama3-rope": lambda folder: random_llama(
        folder,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "gpt2": random_gpt2,
    "gpt2-untied": lambda folder: random_gpt2(folder, tied=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers_and_what_is_saved_opens_there(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "in")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    decoder = load_decoder(folder)
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    backend = SdpaBackend(2, 40)
    with torch.no_grad():
        positions = torch.arange(40).repeat(2)
        ours = decoder.logits(decoder(ids.flatten(), positions, backend), backend)
        torch.testing.assert_close(
            ours.view(2, 40, -1), reference(ids).logits, atol=2e-4, rtol=1e-4
        )

    save_decoder(decoder, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs, saved = reference.state_dict(), again.state_dict()
    assert theirs.keys() == saved.keys()
    assert all(torch.equal(theirs[name], saved[name]) for name in theirs)
    assert again.generation_config.eos_token_id == 2


@pytest.mark.parametrize("kind", KINDS)
def test_digest_is_the_same_wherever_the_weights_lie(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "in")
    decoder = load_decoder(folder)
    digest = weights_digest(decoder.state_dict())
    assert digest == weights_digest(folder)
    with torch.no_grad():
        next(decoder.parameters())[0, 0] += 1e-3
    assert weights_digest(decoder.state_dict()) != digest


def test_digest_names_the_bits_not_the_values(tmp_path: Path) -> None:
    folder = random_llama(tmp_path, dtype=torch.bfloat16)
    decoder = load_decoder(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert weights_digest(decoder.state_dict()) == weights_digest(folder)
    assert weights_digest(load_decoder(folder).state_dict()) != weights_digest(folder)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    folder = random_llama(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "is missing": lambda t: t.pop(name),
        "not a part": lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}),
        "asks for": lambda t: t.update({name: torch.zeros(3, 5)}),
        "int32": lambda t: t.update({name: torch.zeros(3, 5, dtype=torch.int32)}),
        "ties": lambda t: t.update({"lm_head.weight": torch.zeros(320, 64)}),
    }
    for words, change in changes.items():
        (folder / "model.safetensors").write_bytes(whole)
        rewrite(folder, change)
        with pytest.raises(InvalidArgument, match=words):
            load_decoder(folder)


def test_equal_head_of_a_tied_model_is_accepted(tmp_path: Path) -> None:
    folder = random_llama(tmp_path)
    digest = weights_digest(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load_decoder(folder)
    assert weights_digest(folder) == digest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_is_refused_by_name(value: float, tmp_path: Path) -> None:
    folder = random_gpt2(tmp_path)
    rewrite(folder, lambda t: t["transformer.h.1.ln_2.bias"].fill_(value))
    with pytest.raises(DataLoss, match=r"h\.1\.ln_2\.bias.*NaN or infinity"):
        load_decoder(folder)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
def test_a_file_that_is_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    folder = random_llama(tmp_path)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataLoss, match=r"model\.safetensors: damaged or cut off"):
        load_decoder(folder)


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    folder = random_llama(tmp_path)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(DataLoss):
        load_decoder(folder)


def test_a_missing_shard_and_a_path_outside_are_refused(tmp_path: Path) -> None:
    folder = random_llama(tmp_path, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.rename(shard.with_suffix(".away"))
    with pytest.raises(DataLoss, match=shard.name):
        Checkpoint.open(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(InvalidArgument, match="not a plain file name"):
        Checkpoint.open(folder)


def test_pickles_code_and_unknown_architectures_are_refused(tmp_path: Path) -> None:
    folder = random_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())

    def refused(words: str, **changes: object) -> None:
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InvalidArgument, match=words):
            load_decoder(folder)

    refused("runs none", auto_map={"AutoModelForCausalLM": "evil.Model"})
    refused("quantised", quantization_config={"quant_method": "gptq"})
    refused("model_type 'mamba'", model_type="mamba")
    refused("rope_type 'axial'", rope_parameters={"rope_type": "axial", "factor": 2.0})
    refused("hidden_act", hidden_act="tanh")
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidArgument, match="not valid JSON"):
        load_decoder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidArgument, match="pickle"):
        load_decoder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(NotFound):
        load_decoder(folder)


def test_old_gpt2_files_hold_the_bare_body_and_constants(tmp_path: Path) -> None:
    folder = random_gpt2(tmp_path)
    digest = weights_digest(folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    load_decoder(folder)
    assert weights_digest(folder) == digest


def test_numbers_that_the_type_served_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = random_llama(tmp_path, layers=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_decoder(folder, dtype=torch.bfloat16)
    with pytest.raises(InvalidArgument, match=r"'model\.norm\.weight' holds numbers beyond 65504"):
        load_decoder(folder, dtype=torch.float16)
