"""Llamas of known shapes with random weights, made on the device: Plinth's engine and transformers'
model over the very same tensors. What they say is how fast a shape is, never what a model is worth.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from plinth.engine.engine import Engine
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.engine.speculation import LookupDrafter
from plinth.kernels.paged import KvCache
from plinth.models.decoder import Decoder
from plinth.models.hf import config as hf_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The sizes below, as transformers' LlamaConfig calls them.
_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_SIZES = {
    "tiny-smollm2": (512, 72, 192, 3, 9, 3),  # their heads and layouts, for trials on a CPU
    "tiny-llama": (512, 96, 192, 2, 8, 2),
    "random": (8192, 512, 1376, 8, 8, 4),
    "smollm2-shape": (49152, 576, 1536, 30, 9, 3),
    "llama-8b-shape": (128256, 4096, 14336, 32, 32, 8),
}
_TIED = ("smollm2-shape", "tiny-smollm2")
CONTEXT = 2048
# As a shard's settings have it by default: tokens of a step, places, queue, tokens of a block.
_BATCH_TOKENS, _RUNNING, _WAITING, _BLOCK = 512, 64, 256, 16
_CACHED_TOKENS = 8192


def llama_config(name: str) -> transformers.LlamaConfig:
    """The shape of that name. Raises KeyError for another one."""
    sizes = dict(zip(_FIELDS, _SIZES[name], strict=True))
    return transformers.LlamaConfig(
        **sizes,
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=name in _TIED,
    )


def random_pair(
    name: str, device: str, dtype: torch.dtype, *, native: bool = True
) -> tuple[Engine, Any]:
    """The engine and the model, which share their weights; one copy lies on the device.

    `native=False` keeps the C++ kernels out on the CPU too, so that it runs what a GPU runs.
    """
    config = llama_config(name)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        shape = hf_config.from_hf(config.to_diff_dict())  # what its config.json would hold
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # a fp32 copy of 8B would be 32 GB for nothing
        try:
            decoder = Decoder(shape).to(dtype)
        finally:
            torch.set_default_dtype(before)
    theirs = dict(model.named_parameters())
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.shape == theirs[parameter_name].shape
        parameter.data = theirs[parameter_name].data
    blocks = _CACHED_TOKENS // _BLOCK
    cache = KvCache(decoder.states, blocks, _BLOCK, dtype=dtype, device=device)
    engine = Engine(
        Runner(decoder.eval().requires_grad_(False), cache, native=native),
        Limits(_BATCH_TOKENS, _RUNNING, _WAITING, shape.context),
        drafters={"lookup": LookupDrafter()},
    )
    return engine, model
