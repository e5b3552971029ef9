"""Every number of a configuration, whatever a stranger wrote there: an error with the key's name,
or a decoder with finite logits. The fields are those that the dataclasses and `to_hf` have."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from plinth.models.rope_scaling import RopeScaling

from plinth.kernels.training import SdpaBackend
from plinth.models import hf_config
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.limits import REAL, WHOLE
from plinth.shared.errors import InvalidArgument

HOSTILE = (
    *(float("nan"), float("inf"), float("-inf"), 0, 0.0, -0.0, -1, -1.5, 1, 2, 3, 7, 0.5, 2.0, 2.5),
    *(1e-300, 5e-324, 1e-12, 1e39, 1e308, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 10**400),
    *("", "8", "1e-5", "nan", "false", "linear", b"8", None, True, False),
    *([], [1], [None], {}, {"factor": 0}, (), (1,), (2.5,), (-1,), (2**40,)),
)
LLAMA3 = RopeScaling("llama3", 4.0, 1.0, 4.0, 16)
BASES = {
    "llama": ModelConfig(
        *("llama", 64, 1, 16, 4, 2, 4, 32, 32), rope_scaling=LLAMA3, bos_id=1, eos_ids=(2, 3)
    ),
    "llama-linear": ModelConfig(
        *("llama", 64, 1, 16, 4, 2, 4, 32, 32), rope_scaling=RopeScaling("linear", 2.0), pad_id=1
    ),
    "gpt2": ModelConfig("gpt2", 64, 1, 16, 4, 4, 4, 32, 32, bos_id=1, eos_ids=(2,), pad_id=0),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache  # many hostile values change nothing
def logits_are_finite(config: ModelConfig) -> bool:
    """Of a few tokens, the last at the context's end, one embedding all zeros."""
    decoder = Decoder(config)
    decoder.init_weights(0)
    with torch.no_grad():
        decoder.embedding.weight[0] = 0
        length = min(4, config.context)
        positions = torch.arange(config.context)[-length:]
        backend = SdpaBackend(1, length)
        hidden = decoder(torch.zeros(length, dtype=torch.long), positions, backend)
        return bool(torch.isfinite(decoder.logits(hidden, backend)).all())


def outcome(make: Callable[[], ModelConfig], key: str) -> str:
    try:
        config = make()
    except InvalidArgument as error:
        assert key in error.message, f"{key} is not named: {error.message}"
        assert error.field
        return "refused"
    assert logits_are_finite(config), f"{key}: {config}"
    return "computed"


@pytest.mark.parametrize("base", BASES)
def test_any_value_in_any_field_is_refused_by_name_or_computes(base: str) -> None:
    seen = set()
    for field in fields(ModelConfig):
        for value in HOSTILE:
            changed = {**vars(BASES[base]), field.name: value}
            seen.add(outcome(lambda given=changed: ModelConfig(**given), field.name))
    assert seen == {"refused", "computed"}


def test_any_value_in_any_field_of_the_rope_scaling() -> None:
    base = BASES["llama"]
    for field in fields(RopeScaling):
        for value in HOSTILE:

            def make(name: str = field.name, value: Any = value) -> ModelConfig:
                return ModelConfig(
                    **{**vars(base), "rope_scaling": RopeScaling(**{**asdict(LLAMA3), name: value})}
                )

            outcome(make, field.name)


def in_json(value: Any) -> bool:
    """Whether a config.json can hold it (Python reads NaN and Infinity there)."""
    try:
        return json.loads(json.dumps(value)) is not None or value is None
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize("base", BASES)
def test_any_value_of_any_key_of_a_file(base: str) -> None:
    whole = hf_config.to_hf(BASES[base])
    rope = whole.pop("rope_parameters", {})
    whole.pop("rope_theta", None)  # the same as in rope_parameters: one at a time
    hostile = [value for value in HOSTILE if in_json(value)]
    for value in hostile:
        for key in whole:
            changed = whole | ({"rope_parameters": rope} if rope else {}) | {key: value}
            outcome(lambda given=changed: hf_config.from_hf(given), key)
            if "token_id" in key:
                outcome(lambda given={key: value}: hf_config.from_hf(whole, given), key)
        for key in rope:
            for name in ("rope_parameters", "rope_scaling"):
                changed = whole | {name: rope | {key: value}}
                outcome(lambda given=changed: hf_config.from_hf(given), name)
        if rope:
            for key in ("rope_parameters", "rope_scaling", "rope_theta"):
                outcome(lambda given=whole | {key: value}: hf_config.from_hf(given), key)


def test_the_bounds_themselves_can_be_computed() -> None:
    """The largest and the smallest of each number that allocates nothing."""
    for field in (*WHOLE, *REAL):
        for bound in (*WHOLE.get(field, ()), *REAL.get(field, ())):
            if field in ("norm_eps", "rope_theta"):
                assert logits_are_finite(ModelConfig(**{**vars(BASES["llama"]), field: bound}))
            elif field in asdict(LLAMA3):
                low = {"low_freq_factor": 1e-6} if field == "high_freq_factor" else {}
                changed = asdict(LLAMA3) | {"high_freq_factor": 1e6} | low | {field: bound}
                if changed["high_freq_factor"] > changed["low_freq_factor"]:
                    scaling = RopeScaling(**changed)
                    assert logits_are_finite(
                        ModelConfig(**{**vars(BASES["llama"]), "rope_scaling": scaling})
                    )


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"layers": 256, "hidden": 32768, "intermediate": 262144}, "weights, more than"),
        ({"heads": 32768, "kv_heads": 32768, "head_dim": 1024, "hidden": 32768}, "more than"),
        ({"context": 1_048_576, "head_dim": 1024}, "rotary tables of 1,073,741,824"),
    ],
)
def test_products_of_sizes_are_bounded_too(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        ModelConfig(**{**vars(BASES["llama"]), **sizes})


def test_ids_outside_the_vocabulary_are_left_out_of_a_file() -> None:
    """No token could be met that they name; older files have pad_token_id -1."""
    config = hf_config.to_hf(BASES["llama"]) | {"pad_token_id": -1, "eos_token_id": [2, 64, 128009]}
    read = hf_config.from_hf(config, {"eos_token_id": [3, 2, 9999]})
    assert (read.pad_id, read.eos_ids) == (None, (3, 2))
    with pytest.raises(InvalidArgument, match="eos_ids 64 is outside the vocabulary"):
        ModelConfig(**{**vars(BASES["llama"]), "eos_ids": (2, 64)})


@pytest.mark.parametrize("base", BASES)
def test_what_is_written_is_read_back(base: str) -> None:
    config = BASES[base]
    again = hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config))))
    changed = {"attention_bias": True, "mlp_bias": True} if config.family == "gpt2" else {}
    assert vars(again) == {**vars(config), **changed}
