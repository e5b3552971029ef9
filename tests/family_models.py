"""Random models of the configurations in `families`, made by transformers, and ours of their files.

Weights are large, and biases and gains apart from 0 and 1, so that a part which is lost shows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import families
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.families import FAMILIES
from plinth.models.weights import load_decoder


def config_of(family: str, keys: families.Keys) -> transformers.PretrainedConfig:
    """transformers' own, quiet about numbers that are fit for a test alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[family](**json.loads(json.dumps(keys)))


def random_model(
    family: str, keys: families.Keys, *, seed: int = 0, classifier: bool = False
) -> transformers.PreTrainedModel:
    """A causal model, or a classifier of one label."""
    name = FAMILIES[family].classifier if classifier else FAMILIES[family].architecture
    labels = {"num_labels": 1} if classifier else {}
    config = config_of(family, keys | labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def saved(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The folder, with the model in it."""
    model.save_pretrained(folder)
    return folder


def made(family: str, number: int, folder: Path) -> tuple[transformers.PreTrainedModel, Decoder]:
    """transformers' model of a drawn configuration, and ours of its files in `folder`."""
    model = random_model(family, families.configurations(family)[number])
    return model, load_decoder(saved(model, folder))


def ids_of(b: int, t: int, seed: int = 1) -> torch.Tensor:
    """Tokens that are not special, [b, t]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, families.VOCAB, (b, t), generator=generator)


def hidden_of(decoder: Decoder, ids_bt: torch.Tensor) -> tuple[torch.Tensor, SdpaBackend]:
    """Of whole sequences, [b * t, d]."""
    b, t = ids_bt.shape
    backend = SdpaBackend(b, t)
    positions = torch.arange(t).repeat(b) + is_long(decoder, t) * decoder.config.context
    return decoder(ids_bt.flatten(), positions, backend), backend


def logits_of(decoder: Decoder, ids_bt: torch.Tensor) -> torch.Tensor:
    """[b, t, vocab]."""
    hidden_nd, backend = hidden_of(decoder, ids_bt)
    return decoder.logits(hidden_nd, backend).view(*ids_bt.shape, -1)


def is_long(decoder: Decoder, t: int) -> bool:
    """Whether sequences of t tokens turn by the second half of the rotary tables."""
    scalings = [rope.scaling for rope in decoder.config.ropes if rope.scaling is not None]
    return any(one.by_length and t > one.original_context for one in scalings)


def assert_near(
    ours: torch.Tensor, theirs: torch.Tensor, share: float, *, noise: float = 0.0
) -> None:
    """Apart by no more than a share of the norm, or than `noise`, where the truth may be zero."""
    apart = float(torch.linalg.vector_norm(ours - theirs))
    norm = float(torch.linalg.vector_norm(theirs))
    assert apart <= max(share * norm, noise), (apart, norm)
