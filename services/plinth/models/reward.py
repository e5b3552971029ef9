"""A reward model: a decoder's body with one number per position in place of the vocabulary.

An answer's reward is read at its last token (Ouyang et al. 2022, section 3.5). Saved as
transformers' `…ForSequenceClassification` with one label, which opens it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plinth.kernels.backend import Backend
from plinth.models import hf_config
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.dtypes import as_stored, common_dtype
from plinth.models.hf import WEIGHTS, Checkpoint, read_json
from plinth.models.layers import Linear
from plinth.models.lora import merged_tensors
from plinth.models.weights import refuse_names, stored_layout, write_json
from plinth.shared.errors import InvalidArgument

_ARCHITECTURES = {
    "llama": "LlamaForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
}


class RewardModel(Decoder):
    """`score` instead of an output map; `forward` gives hidden states as a decoder does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if not config.tie_embeddings:
            del self.lm_head
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


def save_reward_model(model: RewardModel, folder: Path, pad_id: int) -> None:
    """config.json and model.safetensors. pad_id: transformers finds last tokens by it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = stored_layout(model.config, as_stored(model, merged_tensors(model)))
    content: dict[str, Any] = hf_config.to_hf(model.config) | {
        "architectures": [_ARCHITECTURES[model.config.family]],
        "dtype": common_dtype(tensors.values()),
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "pad_token_id": pad_id,
    }
    write_json(folder / "config.json", content)
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})


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
    with torch.device("meta"):  # shapes first: a hostile config may ask for any amount of memory
        shapes = {n: p.shape for n, p in RewardModel(checkpoint.config).named_parameters()}
    refuse_names(sorted(shapes.keys() - tensors.keys()), "missing", str(folder))
    refuse_names(sorted(tensors.keys() - shapes.keys()), "not a part of this model", str(folder))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InvalidArgument(
                f"{folder}: tensor {name!r} is {list(tensors[name].shape)}, must be "
                f"{list(shape)} (a reward model has one label)"
            )
    model = RewardModel(checkpoint.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    model.stored_dtypes = {name: tensors[name].dtype for name in shapes}
    return model
