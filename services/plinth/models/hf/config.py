"""A Hugging Face `config.json` read into a ModelConfig, and written from one.

Its family says what the keys mean (`families`). Each is read with its type and its range, or known
not to matter (`hf.keys`); anything else is an error, never a guess. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.families import FAMILIES, family_of, family_of_file
from plinth.models.families.family import Family
from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.hf.keys import check_keys
from plinth.models.limits import from_json, shown, token_id
from plinth.models.rope import stretched, told_of
from plinth.shared.errors import InvalidArgument

_GENERATION = "generation_config.json"
_NOT_OF_THE_MODEL = ("AutoTokenizer", "AutoProcessor")  # keys of auto_map


def from_hf(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` for the end-of-sequence ids).

    Raises InvalidArgument for an unknown architecture, classes of another one, code that would
    have to be run (`auto_map`), quantised weights, a number that cannot be right, or a key that is
    unknown or asks for a variant that the decoder does not compute.
    """
    if config.get("quantization_config"):
        raise InvalidArgument(
            f"{WHERE}: quantization_config: quantised checkpoints cannot be opened; "
            "import the fp32, fp16 or bf16 weights, or a GGUF file",
            field="quantization_config",
        )
    family = family_of_file(config)
    _check_classes(config, family)
    file = ConfigFile(config)
    fields = family.read(file)
    check_keys(config, file.asked, family)
    fields |= _special_ids(config, generation or {}, fields["vocab_size"])
    factor = file.keys.get("factor", "factor")
    fields["context"] = stretched(fields["ropes"], fields["context"], where=WHERE, key=factor)
    try:
        return ModelConfig(**{"family": family.name, **fields})
    except InvalidArgument as error:
        key = file.keys.get(error.field, error.field)
        raise InvalidArgument(f"{WHERE}: {key}: {error.message}", field=key) from error


def _check_classes(config: Mapping[str, Any], family: Family) -> None:
    """InvalidArgument where a config.json names classes of another family, or code of its own.

    `auto_map` may name copies of transformers' classes of this family, which the first files of
    Phi-3 do: transformers takes its own instead unless it is told to trust them. The tokenizer that
    it may name, as those of Phi-4-mini do, is not of the model: Plinth reads tokenizer.json.
    """
    stem = family.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    own = {family.architecture, family.classifier, f"{stem}Model", f"{stem}Config"}
    auto_map = config.get("auto_map")
    named = [auto_map]
    if isinstance(auto_map, dict):
        named = [value for key, value in auto_map.items() if key not in _NOT_OF_THE_MODEL]
    if auto_map and not all(isinstance(n, str) and n.rpartition(".")[2] in own for n in named):
        raise InvalidArgument(
            f"{WHERE}: auto_map asks to run code from the checkpoint; Plinth runs none. Convert "
            "the model to a plain one of a family that Plinth opens first",
            reason="REMOTE_CODE",
            field="auto_map",
        )
    listed = config.get("architectures")
    named = listed if isinstance(listed, list) else []
    for other in FAMILIES.values():
        theirs = [name for name in named if name in (other.architecture, other.classifier)]
        if theirs and not any(name in named for name in own):
            raise InvalidArgument(
                f"{WHERE}: architectures names {theirs[0]!r}, which is of model_type "
                f"{other.name!r}, not {family.name!r}; one of the two is wrong",
                field="architectures",
            )


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
    cannot say: what is written is read again."""
    family = family_of(config.family)
    eos = config.eos_ids
    written = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        **family.write(replace(config, context=told_of(config.ropes, config.context))),
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else (list(eos) or None),
        "pad_token_id": config.pad_id,
    }
    told, read = _plain(config), _plain(from_hf(written))
    for field, value in vars(told).items():
        if value != vars(read)[field]:
            raise InvalidArgument(
                f"model config: {field} is {shown(value)}, which no config.json of {family.name!r} "
                f"says: there it is {shown(vars(read)[field])}",
                field=field,
            )
    return written


def _plain(config: ModelConfig) -> ModelConfig:
    """With what is said by a default said outright."""
    return replace(config, layer_kinds=config.kinds, attention_scale=config.scale)
