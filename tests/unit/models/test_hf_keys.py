"""Keys of config.json, held against transformers: what it computes otherwise, Plinth computes so
too or refuses by the key's name. The keys are those that transformers' own classes have."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import families
from family_models import on_disk
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.families import FAMILIES
from plinth.models.hf import config as hf_config
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.folder import canonical_name, is_turned
from plinth.models.weights import check_tensors
from plinth.shared.errors import InvalidArgument

CONFIGS = {family: CONFIG_MAPPING[family] for family in FAMILIES}
MODELS = {name: getattr(transformers, family.architecture) for name, family in FAMILIES.items()}
SMALL = {family: families.smallest(family) for family in FAMILIES}
# Narrow heads, too, turn by pairs then.
SMALL["gpt_neox"] |= {"rotary_pct": 0.5}
# Read by transformers' attention masks and caches whatever the family, though in no class's fields.
SHARED = {
    "is_causal": (False, True),
    "sliding_window": (3, 64, None),
    "attention_chunk_size": (3, None),
    "layer_types": (["sliding_attention"] * 2, ["full_attention"] * 2),
    "per_layer_config": ({"0": {"rms_norm_eps": 0.5}}, {"1": {"layer_norm_epsilon": 0.5}}),
    "partial_rotary_factor": (0.5, 1.0),
    "rope_theta": (100.0, 10000.0),
    "rope_scaling": ({"type": "linear", "factor": 3.0}, {"rope_type": "dynamic", "factor": 2.0}),
    "original_max_position_embeddings": (8,),
    "num_labels": (3,),
}
ROPES = (
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 8.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 16,
    },
)
STRINGS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh", "last")
IDS = torch.randint(2, 48, (1, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def others(key: str, value: Any) -> tuple[Any, ...]:
    """Further values that the key may have, by the type of its default."""
    if key == "rope_parameters":
        return ROPES
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (2 * value, 16)
    if isinstance(value, float):
        return (0.5, 0.03)
    if isinstance(value, str):
        return STRINGS if "act" in key else ("last",)
    return (True, 16, "gelu")


def flips(family: str) -> list[tuple[str, Any]]:
    config = CONFIGS[family](**SMALL[family])
    known = {field.name: getattr(config, field.name) for field in fields(type(config))}
    known |= {key: value for key, value in config.to_dict().items() if key not in known}
    known |= dict.fromkeys(type(config).attribute_map, 16)
    known.pop("dtype")  # how weights are stored; the logits here are float32's
    return [(key, value) for key in known for value in others(key, known[key])] + [
        (key, value) for key, values in SHARED.items() for value in values
    ]


def theirs(family: str, change: dict[str, Any]) -> tuple[dict[str, Any], Any] | None:
    """config.json and the model; None where transformers itself refuses the value."""
    try:
        config = CONFIGS[family](**(SMALL[family] | copy.deepcopy(change)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MODELS[family](config).eval()
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.data += 0.2 * torch.randn_like(parameter)
        with torch.no_grad():
            model(IDS)
    except Exception:  # noqa: BLE001 - a value that is none of this key's: whatever transformers raises
        return None
    return json.loads(config.to_json_string(use_diff=True)), model


def plinth_logits(written: dict[str, Any], model: Any) -> torch.Tensor:
    config = hf_config.from_hf(written)
    tensors = {}
    for stored, tensor in on_disk(model.state_dict(), config.family).items():
        name = canonical_name(config, stored)
        if name is not None:
            tensors[name] = tensor.t() if is_turned(config.family, name) else tensor
    check_tensors(config, tensors, "here")
    decoder = Decoder(config)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(tensors[name])
        backend = SdpaBackend(1, IDS.shape[1])
        hidden = decoder(IDS[0], torch.arange(IDS.shape[1]), backend)
        return decoder.logits(hidden, backend)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.filterwarnings("ignore")  # transformers', about values that make little sense
def test_every_key_gives_the_logits_of_transformers_or_is_refused_by_name(family: str) -> None:
    base, plain = theirs(family, {})
    with torch.no_grad():
        before = plain(IDS).logits[0]
    computed, refused, changed = set(), set(), set()
    for key, value in flips(family):
        made = theirs(family, {key: value})
        if made is None:
            continue
        written, model = made
        with torch.no_grad():
            wanted = model(IDS).logits[0]
        try:
            got = plinth_logits(written, model)
        except InvalidArgument as error:
            # transformers writes some of its keys under another name, or another with it.
            differing = {name for name in written if written[name] != base.get(name)}
            assert any(name in error.message for name in differing), error.message
            refused.add(key)
        else:
            close = wanted.shape == got.shape and torch.allclose(wanted, got, atol=1e-3, rtol=1e-3)
            assert close, f"{key}: {value!r} gives other logits than transformers"
            computed.add(key)
        if wanted.shape != before.shape or not torch.allclose(wanted, before, atol=1e-3):
            changed.add(key)
    # The test can tell: of either kind there are keys that change what is computed.
    assert len(changed & refused) >= 2, (changed, refused)
    assert len(changed & computed) >= 4, (changed, computed)
    assert len(computed) >= 20


@pytest.mark.parametrize("family", CONFIGS)
def test_all_options_written_out_are_accepted(family: str) -> None:
    for options in ({}, SMALL[family], {"tie_word_embeddings": True, "use_cache": False}):
        config = CONFIGS[family](**options, architectures=[MODELS[family].__name__])
        for diff in (True, False):
            hf_config.from_hf(json.loads(config.to_json_string(use_diff=diff)))


# Decoders that are Llama's or GPT-2's but for a few keys: what those keys are called.
RELATIVES = """
    granite mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo2 cohere cohere2 phi phi3 stablelm
    smollm3 starcoder2 gpt_neox gptj falcon mpt bloom mixtral deepseek_v3 llama4_text nemotron
    glm4 diffllama exaone4 apertus arcee gpt_bigcode gpt_oss opt gpt_neo codegen
"""
# Of those, what a Llama or a GPT-2 may have too without computing anything else.
HARMLESS = {
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp", "n_ctx"),
    *("initializer_range", "use_cache", "prefix", "sep_token_id", "decoder_start_token_id"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "tie_word_embeddings"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "original_max_position_embeddings", "is_decoder", "num_labels"),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_keys_of_other_families_are_refused_by_name(family: str) -> None:
    own = {field.name for field in fields(CONFIGS[family])} | set(CONFIGS[family].attribute_map)
    base = json.loads(CONFIGS[family](**SMALL[family]).to_json_string())
    read = ConfigFile(base)
    FAMILIES[family].read(read)
    own |= read.asked | FAMILIES[family].inert
    asked = set()
    for relative in RELATIVES.split():
        module = importlib.import_module("transformers")
        for field in fields(getattr(module, CONFIG_MAPPING_NAMES[relative])):
            if field.name in own or field.name in HARMLESS or field.name in asked:
                continue
            asked.add(field.name)
            for value in (7, 0.3, [7], "something"):
                with pytest.raises(InvalidArgument, match=field.name):
                    hf_config.from_hf(base | {field.name: value})
    assert {"embedding_multiplier", "logits_scaling", "residual_multiplier"} <= asked | own
    assert len(asked) > 100


SMOLLM2 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
 "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
 "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
 "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
 "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
 "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
 "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
 "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
 "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
 "use_cache": true, "vocab_size": 49152}"""
LLAMA32 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
 "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
 "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
 "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
 "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
 "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
 "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
 "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
 "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
 "use_cache": true, "vocab_size": 128256}"""
LLAMA1 = """{"architectures": ["LlamaForCausalLM"], "_name_or_path": "x", "bos_token_id": 1,
 "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
 "intermediate_size": 11008, "max_position_embeddings": 2048, "max_sequence_length": 2048,
 "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": -1,
 "pretraining_tp": 2, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
 "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": true,
 "vocab_size": 32000}"""
GPT2 = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
 "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
 "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
 "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
 "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
 "summary_type": "cls_index", "summary_use_proj": true,
 "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
 "vocab_size": 50257}"""
DISTILGPT2 = """{"_num_labels": 1, "activation_function": "gelu_new",
 "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
 "embd_pdrop": 0.1, "eos_token_id": 50256, "id2label": {"0": "LABEL_0"},
 "initializer_range": 0.02, "label2id": {"LABEL_0": 0}, "layer_norm_epsilon": 1e-05,
 "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 6,
 "n_positions": 1024, "output_past": true, "resid_pdrop": 0.1, "summary_activation": null,
 "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
 "summary_use_proj": true, "task_specific_params": null, "vocab_size": 50257}"""
FULL4 = """{"return_dict": true, "output_hidden_states": false, "output_attentions": false,
 "torchscript": false, "torch_dtype": null, "use_bfloat16": false, "tf_legacy_loss": false,
 "pruned_heads": {}, "tie_word_embeddings": true, "chunk_size_feed_forward": 0,
 "is_encoder_decoder": false, "is_decoder": false, "cross_attention_hidden_size": null,
 "add_cross_attention": false, "tie_encoder_decoder": false, "max_length": 20, "min_length": 0,
 "do_sample": false, "early_stopping": false, "num_beams": 1, "num_beam_groups": 1,
 "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
 "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
 "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null, "num_return_sequences": 1,
 "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
 "forced_eos_token_id": null, "remove_invalid_values": false,
 "exponential_decay_length_penalty": null, "suppress_tokens": null,
 "begin_suppress_tokens": null, "finetuning_task": null, "tokenizer_class": null,
 "prefix": null, "sep_token_id": null, "decoder_start_token_id": null,
 "task_specific_params": null, "problem_type": null, "_name_or_path": "",
 "_attn_implementation_autoset": false}"""


@pytest.mark.parametrize("text", [SMOLLM2, LLAMA32, LLAMA1, GPT2, DISTILGPT2])
def test_well_known_files_open(text: str) -> None:
    config = hf_config.from_hf(json.loads(text))
    assert hf_config.from_hf(json.loads(text) | json.loads(FULL4)).hidden == config.hidden
    assert hf_config.from_hf(hf_config.to_hf(config)) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "'quantization'"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"qk_norm": True}, "qk_norm is True.*must be False"),
        ({"is_causal": False}, "is_causal is False.*must be True"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "must agree"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor .* has no meaning"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "must agree"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 3.0}},
            "one of them must go",
        ),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, must be a whole number from 1"),
        ({"num_key_value_heads": 2}, "does not divide by num_key_value_heads"),
        ({"head_dim": 33}, "even head_dim"),
        ({"architectures": "LlamaForCausalLM"}, "architectures .* a list of names"),
        ({"mlp_bias": "false"}, "mlp_bias is 'false', must be true or false"),
    ],
)
def test_what_a_message_says(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        hf_config.from_hf(json.loads(SMOLLM2) | change)


def test_the_two_names_of_a_gpt2_size_must_agree() -> None:
    config = json.loads(GPT2)
    assert hf_config.from_hf(config | {"hidden_size": 768}).hidden == 768
    with pytest.raises(InvalidArgument, match="hidden_size is 64 and n_embd 768"):
        hf_config.from_hf(config | {"hidden_size": 64})
    only = {key: value for key, value in config.items() if key != "n_layer"}
    assert hf_config.from_hf(only | {"num_hidden_layers": 12}).layers == 12
    with pytest.raises(InvalidArgument, match="'n_layer' is missing"):
        hf_config.from_hf(only)
