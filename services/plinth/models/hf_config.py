"""A Hugging Face `config.json` read into a ModelConfig, and written from one.

Its family says what the keys mean (`families`). Each is read with its type and its range, or known
not to matter (`hf_keys`); anything else is an error, never a guess. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import family_of, family_of_file
from plinth.models.hf_file import WHERE, ConfigFile
from plinth.models.hf_keys import check_keys
from plinth.models.limits import from_json, token_id
from plinth.shared.errors import InvalidArgument

_GENERATION = "generation_config.json"


def from_hf(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` for the end-of-sequence ids).

    Raises InvalidArgument for an unknown architecture, code that would have to be run
    (`auto_map`), quantised weights, a number that cannot be right, or a key that is unknown or
    asks for a variant that the decoder does not compute.
    """
    if config.get("auto_map"):
        raise InvalidArgument(
            f"{WHERE}: auto_map asks to run code from the checkpoint; Plinth runs none. Convert "
            "the model to a plain one of a family that Plinth opens first",
            field="auto_map",
        )
    if config.get("quantization_config"):
        raise InvalidArgument(
            f"{WHERE}: quantization_config: quantised checkpoints cannot be opened; "
            "import the fp32, fp16 or bf16 weights, or a GGUF file",
            field="quantization_config",
        )
    family = family_of_file(config)
    file = ConfigFile(config)
    fields = family.read(file)
    check_keys(config, file.asked, family)
    fields |= _special_ids(config, generation or {}, fields["vocab_size"])
    try:
        return ModelConfig(**{"family": family.name, **fields})
    except InvalidArgument as error:
        key = file.keys.get(error.field, error.field)
        raise InvalidArgument(f"{WHERE}: {key}: {error.message}", field=key) from error


def _special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int
) -> dict[str, Any]:
    """Ids outside the vocabulary are left out: no token could ever be met that they name (older
    Llama files have pad_token_id -1). Raises InvalidArgument naming the key."""

    def known(value: Any, key: str, where: str) -> list[int]:
        ids = [] if value is None else value if isinstance(value, list) else [value]
        checked = [token_id(from_json(i), where=where, key=key) for i in ids]
        return [i for i in checked if 0 <= i < vocab_size]

    def one(key: str) -> int | None:
        if isinstance(config.get(key), list):
            token_id(config[key], where=WHERE, key=key)
        return next(iter(known(config.get(key), key, WHERE)), None)

    eos = "eos_token_id"
    ends = known(generation.get(eos), eos, _GENERATION) + known(config.get(eos), eos, WHERE)
    return {
        "bos_id": one("bos_token_id"),
        "pad_id": one("pad_token_id"),
        "eos_ids": tuple(dict.fromkeys(ends)),
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers opens. InvalidArgument for a config that its family
    cannot say."""
    family = family_of(config.family)
    eos = config.eos_ids
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        **family.write(config),
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else (list(eos) or None),
        "pad_token_id": config.pad_id,
    }
