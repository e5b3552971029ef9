"""Granite 3 (Granite Team, IBM 2024): Llama with four multipliers, of the embeddings, the scores of
attention, what each block adds, and the logits."""

from __future__ import annotations

from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile


def _read(file: ConfigFile) -> dict[str, Any]:
    return llama.read(file) | {
        "attention_scale": file.real("attention_scale", "attention_multiplier", 1.0),
        "embedding_scale": file.real("embedding_scale", "embedding_multiplier", 1.0),
        "residual_scale": file.real("residual_scale", "residual_multiplier", 1.0),
        "logit_scale": 1 / file.real("logit_divisor", "logits_scaling", 1.0),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama.write(config),
        "attention_multiplier": config.scale,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        # Divided twice it has lost its last digits.
        "logits_scaling": float(f"{1 / config.logit_scale:.12g}"),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    """llama.cpp takes 0 for none, of the scores for 1 / sqrt(head_dim)."""
    # Of this architecture false means no positions at all (src/models/granite.cpp).
    file.must_be("rope.scaling.finetuned", True, "Granite's positions are rotary")
    return llama.read_gguf(file) | {
        "attention_scale": file.optional_real("attention_scale", "attention.scale"),
        "embedding_scale": file.optional_real("embedding_scale", "embedding_scale") or 1.0,
        "residual_scale": file.optional_real("residual_scale", "residual_scale") or 1.0,
        "logit_scale": 1 / file.real("logit_divisor", "logit_scale"),
    }


FAMILY = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    classifier="GraniteForSequenceClassification",
    names=llama.NAMES,
    read=_read,
    write=_write,
    inert=frozenset({"attention_dropout"}),
    gguf=GgufForm("granite", _read_gguf, paired=True),
)
