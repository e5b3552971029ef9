"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): LayerNorm, attention and MLP side
by side, a part of each head turns."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.rope import gguf_rope
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.parts import Biases

_FIXED: dict[str, Any] = {"norm": "layer", "gated": False}


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": file.size("vocab_size", "vocab_size"),
        "layers": file.size("layers", "num_hidden_layers"),
        "hidden": file.size("hidden", "hidden_size"),
        "heads": file.size("heads", "num_attention_heads"),
        "intermediate": file.size("intermediate", "intermediate_size"),
        "context": file.size("context", "max_position_embeddings"),
    }
    sizes["head_dim"] = file.divided(sizes["hidden"], sizes["heads"])
    bias = file.flag("attention_bias", True)
    rope = rope_of(
        file,
        sizes["context"],
        sizes["head_dim"],
        theta_key="rotary_emb_base",
        share=0.25,
        share_key="rotary_pct",
    )
    return {
        **_FIXED,
        **sizes,
        "kv_heads": sizes["heads"],
        "activation": file.activation("hidden_act", "gelu"),
        "norm_eps": file.real("norm_eps", "layer_norm_eps", 1e-5),
        "ropes": (rope,),
        "parallel": file.flag("use_parallel_residual", True),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
        "biases": Biases(bias, bias, bias, bias, mlp=True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.context,
        "hidden_act": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim, share=True),
        "use_parallel_residual": config.parallel,
        "attention_bias": config.biases.q,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    sizes, bias = file.sizes(grouped=False), file.has_bias("attn_qkv")
    return {
        **_FIXED,
        **sizes,
        "activation": "gelu",
        "norm_eps": file.real("norm_eps", "attention.layer_norm_epsilon"),
        "ropes": (gguf_rope(file, sizes, partial=True),),
        "parallel": file.get("use_parallel_residual", bool, True),
        "biases": Biases(bias, bias, bias, bias, mlp=True),
    }


FAMILY = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    classifier="GPTNeoXForSequenceClassification",
    names=Names(
        embedding="gpt_neox.embed_in",
        layer="gpt_neox.layers.{}",
        last_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        parts={
            "before_attention": "input_layernorm",
            "before_mlp": "post_attention_layernorm",
            "qkv": "attention.query_key_value",
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        fused_rows="heads",
    ),
    read=_read,
    write=_write,
    new={**_FIXED, "parallel": True, "biases": Biases.all(), "activation": "gelu"},
    inert=frozenset(
        {
            "attention_dropout",
            "hidden_dropout",
            "classifier_dropout",
            # The same by the names of BERT, in the first files.
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
        }
    ),
    gguf=GgufForm("gptneox", _read_gguf),
)
