"""Small checkpoints for tests, made by transformers, and the real model, imported once.

Every function fills `folder` (made if need be) and returns it. Weights are random but not tiny
(std 0.2), so that the best next token is clear and greedy answers do not hang on rounding.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def random_llama(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = True,
    vocab_size: int = 320,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 128,
    context: int = 512,
    rope_parameters: dict[str, object] | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> Path:
    """A Llama with grouped-query attention; id 0 is beginning, id 2 the end of sequence."""
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        max_position_embeddings=context,
        rope_parameters=rope_parameters or {"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=None,
    )
    return _save(transformers.LlamaForCausalLM, config, folder, seed, dtype, max_shard_size)


def random_gpt2(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = True,
    vocab_size: int = 320,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    context: int = 512,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> Path:
    """A GPT-2; id 0 is beginning, id 2 the end of sequence."""
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=2,
    )
    return _save(transformers.GPT2LMHeadModel, config, folder, seed, dtype, max_shard_size)


def random_mixtral(folder: Path, *, seed: int = 0, layers: int = 3, **keys: object) -> Path:
    """Six experts, two for each token; id 0 is beginning, id 2 the end of sequence."""
    experts = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 96}
    config = transformers.MixtralConfig(**(_mixture(layers) | experts | keys))
    return _save(transformers.MixtralForCausalLM, config, folder, seed, torch.float32, "5GB")


def random_qwen3_moe(folder: Path, *, seed: int = 0, layers: int = 3, **keys: object) -> Path:
    """Seven experts, three for each token, in all layers but the second; heads of 20 features."""
    experts = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    there = {"intermediate_size": 88, "mlp_only_layers": [1], "head_dim": 20}
    config = transformers.Qwen3MoeConfig(**(_mixture(layers) | experts | there | keys))
    return _save(transformers.Qwen3MoeForCausalLM, config, folder, seed, torch.float32, "5GB")


def _mixture(layers: int) -> dict[str, object]:
    return {
        "vocab_size": 320,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def _save(
    model_class: type,
    config: transformers.PretrainedConfig,
    folder: Path,
    seed: int,
    dtype: torch.dtype,
    max_shard_size: str,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            # transformers starts biases at 0 and gains at 1, which would hide a lost one.
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                assert torch.isfinite(parameter).all(), name
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def byte_tokenizer(folder: Path, *, digits: bool = True) -> Path:
    """A tokenizer of 3 special tokens and the 256 bytes (259 ids), with the ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a model folder: imported once per version of the importer.

    Kept under the machine's temporary folder (540 MB); safe to delete; treat as read-only.
    """
    from plinth.models import importer
    from plinth.models.sources import DEFAULT_SOURCE

    models = Path(importer.__file__).parent
    others = ("dtypes", "importer", "tokenizer_files", "weights")
    sources = sorted([*(models / "gguf").glob("*.py"), *(models / f"{name}.py" for name in others)])
    version = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()) / f"plinth-tests-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    folder = cache / f"smollm2-{version}"
    with _locked(cache / "smollm2.lock"):
        if not folder.exists():
            for other in cache.glob("smollm2-*"):
                if other.stat().st_mtime < time.time() - 6 * 3600:  # of no test that still runs
                    shutil.rmtree(other)
            importer.import_source(DEFAULT_SOURCE, folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
