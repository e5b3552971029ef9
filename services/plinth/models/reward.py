"""A reward model: a decoder's body with one number per position in place of the vocabulary.

An answer's reward is read at its last token (Ouyang et al. 2022, section 3.5). Saved as
transformers' `…ForSequenceClassification` with one label, which opens it; one that transformers
saved is opened likewise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plinth.kernels.backend import Backend
from plinth.models.adapters.lora import merged_tensors
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.dtypes import as_stored, common_dtype
from plinth.models.families import FAMILIES, names_of
from plinth.models.hf import config as hf_config
from plinth.models.hf.folder import WEIGHTS, Checkpoint, read_json
from plinth.models.layers import Linear
from plinth.models.weights import refuse_names, stored_layout, write_json
from plinth.shared.errors import InvalidArgument

_ARCHITECTURES = {name: family.classifier for name, family in FAMILIES.items()}


class RewardModel(Decoder):
    """`score` instead of an output map; `forward` gives hidden states as a decoder does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if not config.tie_embeddings:
            delattr(self, names_of(config.family).head)
        self.score = Linear(config.hidden, 1, bias=False)

    @classmethod
    def of(cls, decoder: Decoder, seed: int) -> RewardModel:
        """Starts from a language model. The head is N(0, 1/√(d + 1)), as in Ziegler et al. 2019,
        so that scores begin near zero and with unit scale."""
        made = cls(decoder.config)
        made.load_state_dict(decoder.state_dict(), strict=False)
        made.stored_dtypes = dict(decoder.stored_dtypes)
        std = 1 / math.sqrt(decoder.config.hidden + 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            made.score.weight.normal_(0.0, std, generator=generator)
        return made

    def scores(self, hidden_md: Tensor, backend: Backend) -> Tensor:
        """One score per row, [m]."""
        return backend.linear(hidden_md, self.score)[0].squeeze(1)


def is_reward_model(folder: Path) -> bool:
    """Whether `config.json` there says so."""
    named = read_json(folder / "config.json").get("architectures") or []
    return isinstance(named, list) and any(name in named for name in _ARCHITECTURES.values())


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """config.json and model.safetensors; adapters are merged into their maps.

    transformers finds last tokens by the id of padding, which must end no answer: see
    `inherited_settings.pad_apart`.
    """
    save_reward_tensors(model.config, as_stored(model, merged_tensors(model)), folder)


def save_reward_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The same from canonical tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = stored_layout(config, tensors)
    content: dict[str, Any] = hf_config.to_hf(config) | {
        "architectures": [_ARCHITECTURES[config.family]],
        "dtype": common_dtype(stored.values()),
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }
    write_json(folder / "config.json", content)
    save_file(stored, str(folder / WEIGHTS), metadata={"format": "pt"})


def check_reward_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InvalidArgument unless these are exactly the tensors of a reward model of this config,
    which has one label."""
    with torch.device("meta"):  # shapes first: a hostile config may ask for any amount of memory
        shapes = {n: p.shape for n, p in RewardModel(config).named_parameters()}
    refuse_names(sorted(shapes.keys() - tensors.keys()), "missing", where)
    refuse_names(sorted(tensors.keys() - shapes.keys()), "not a part of this model", where)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InvalidArgument(
                f"{where}: tensor {name!r} is {list(tensors[name].shape)}, must be "
                f"{list(shape)} (a reward model has one label)"
            )


def load_reward_model(folder: Path) -> RewardModel:
    """The reward model in `folder`, in float32.

    Raises what opening a checkpoint raises, and InvalidArgument for one that gives no single score.
    """
    if not is_reward_model(folder):
        raise InvalidArgument(
            f"{folder}: no reward model; config.json must name one of "
            f"{', '.join(sorted(_ARCHITECTURES.values()))}"
        )
    checkpoint = Checkpoint.open(folder)
    tensors = dict(checkpoint.tensors())
    check_reward_tensors(checkpoint.config, tensors, str(folder))
    model = RewardModel(checkpoint.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    model.stored_dtypes = {name: tensors[name].dtype for name, _ in model.named_parameters()}
    return model
