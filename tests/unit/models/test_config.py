"""Every number of a configuration, whatever a stranger wrote there: an error with the key's name,
or a decoder with finite logits. The fields are those that the dataclasses and `to_hf` have."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

import families
from family_models import config_of
from plinth.kernels.training import SdpaBackend
from plinth.models.config import Experts, LayerKind, ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.families import FAMILIES, new_config
from plinth.models.hf import config as hf_config
from plinth.models.hf.file import ConfigFile
from plinth.models.limits import REAL, WHOLE
from plinth.models.parts import Biases
from plinth.models.rope import Rope, RopeScaling
from plinth.shared.errors import InvalidArgument

HOSTILE = (
    *(float("nan"), float("inf"), float("-inf"), 0, 0.0, -0.0, -1, -1.5, 1, 2, 3, 7, 0.5, 2.0, 2.5),
    *(1e-300, 5e-324, 1e-12, 1e39, 1e308, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 10**400),
    *("", "8", "1e-5", "nan", "false", "linear", b"8", None, True, False),
    *([], [1], [None], {}, {"factor": 0}, (), (1,), (2.5,), (-1,), (2**40,)),
)
LLAMA3 = RopeScaling("llama3", 4.0, 1.0, 4.0, 16)
SCALINGS = {
    "linear": RopeScaling("linear", 2.0, original_context=16),
    "llama3": LLAMA3,
    "dynamic": RopeScaling("dynamic", 2.0, original_context=16),
    "yarn": RopeScaling("yarn", 4.0, original_context=16, attention_factor=1.1),
    "longrope": RopeScaling(
        "longrope", 2.0, original_context=16, short_factors=(1.0, 1.2), long_factors=(2.0, 3.0)
    ),
}
SIZES: dict[str, Any] = {
    **{"vocab_size": 64, "layers": 1, "hidden": 16, "heads": 4, "head_dim": 4},
    **{"intermediate": 32, "context": 32},
}


def _drawn(family: str) -> ModelConfig:
    config = config_of(family, families.configurations(family)[0])
    return hf_config.from_hf(json.loads(config.to_json_string(use_diff=False)))


BASES = {
    "llama": new_config(
        "llama", **SIZES, kv_heads=2, ropes=(Rope(scaling=LLAMA3),), bos_id=1, eos_ids=(2, 3)
    ),
    "llama-linear": new_config(
        "llama", **SIZES, kv_heads=2, ropes=(Rope(scaling=SCALINGS["linear"]),), pad_id=1
    ),
    "gpt2": new_config("gpt2", **SIZES, kv_heads=4, bos_id=1, eos_ids=(2,), pad_id=0),
    **{family: _drawn(family) for family in FAMILIES if family not in ("llama", "gpt2")},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits_are_finite(config: ModelConfig) -> bool:
    """Of a few tokens, the last at the context's end, one embedding all zeros. InvalidArgument for
    a choice that the family has no names for."""
    # What is alike in all but the ids of special tokens computes the same.
    return _computes(replace(config, bos_id=None, pad_id=None, eos_ids=()))


@functools.cache  # many hostile values change nothing
def _computes(config: ModelConfig) -> bool:
    decoder = Decoder(config)
    decoder.init_weights(0)
    with torch.no_grad():
        decoder.embedding.weight[0] = 0
        length = min(4, config.context)
        positions = torch.arange(config.context)[-length:]
        backend = SdpaBackend(1, length)
        hidden = decoder(torch.zeros(length, dtype=torch.long), positions, backend)
        return bool(torch.isfinite(decoder.logits(hidden, backend)).all())


# Keys that another one's value is held against: the other may be what the error names.
HELD_AGAINST = {
    "num_hidden_layers": ("layer_types", "no_rope_layers", "mlp_only_layers"),
    "no_rope_layer_interval": ("no_rope_layers",),
    "hidden_size": ("num_attention_heads",),
    "num_attention_heads": ("num_key_value_heads", "hidden_size"),
    "n_embd": ("n_head",),
    "head_dim": ("rope_parameters", "short_factors"),
    "layers": ("layer_kinds",),
}


def outcome(make: Callable[[], ModelConfig], key: str) -> str:
    try:
        config = make()
        finite = logits_are_finite(config)
    except InvalidArgument as error:
        named = (key, *HELD_AGAINST.get(key, ()))
        assert any(name in error.message for name in named), f"{key}: {error.message}"
        assert error.field
        return "refused"
    assert finite, f"{key}: {config}"
    return "computed"


@pytest.mark.parametrize("base", BASES)
def test_any_value_in_any_field_is_refused_by_name_or_computes(base: str) -> None:
    seen = set()
    for field in fields(ModelConfig):
        for value in HOSTILE:
            changed = {**vars(BASES[base]), field.name: value}
            seen.add(outcome(lambda given=changed: ModelConfig(**given), field.name))
    assert seen == {"refused", "computed"}


@pytest.mark.parametrize("kind", SCALINGS)
def test_any_value_in_any_field_of_a_rope(kind: str) -> None:
    base, scaling = BASES["llama"], SCALINGS[kind]
    for field in fields(RopeScaling):
        for value in (*HOSTILE, (1.0, 2.0), (0.0, 1.0), (1.0, "2")):

            def make(name: str = field.name, value: Any = value) -> ModelConfig:
                return replace(
                    base, ropes=(Rope(scaling=RopeScaling(**{**vars(scaling), name: value})),)
                )

            outcome(make, field.name)
    for field in fields(Rope):
        for value in HOSTILE:

            def with_rope(name: str = field.name, value: Any = value) -> ModelConfig:
                return replace(base, ropes=(Rope(**{**vars(Rope()), name: value}),))

            outcome(with_rope, field.name)


@pytest.mark.parametrize("part", [LayerKind, Biases])
def test_any_value_in_any_field_of_a_part(part: type) -> None:
    base = BASES["qwen3"]
    for field in fields(part):
        for value in HOSTILE:

            def make(name: str = field.name, value: Any = value) -> ModelConfig:
                made = part(**{name: value})
                if part is Biases:
                    return replace(base, biases=made)
                return replace(base, layer_kinds=(made,) * base.layers)

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
    for value in filter(in_json, HOSTILE):
        for key in whole:
            changed = whole | ({"rope_parameters": rope} if rope else {}) | {key: value}
            outcome(lambda given=changed: hf_config.from_hf(given), key)
            if "token_id" in key:
                outcome(lambda given={key: value}: hf_config.from_hf(whole, given), key)
        for key in rope:
            names = ("rope_parameters", "rope_scaling")
            if BASES[base].family == "gemma3_text":  # whose are objects by the layers' kind
                names = ("rope_parameters",)
                for inner in rope[key]:
                    changed = rope | {key: rope[key] | {inner: value}}
                    given = whole | {"rope_parameters": changed}
                    outcome(lambda given=given: hf_config.from_hf(given), "rope_parameters")
            for name in names:
                changed = whole | {name: rope | {key: value}}
                outcome(lambda given=changed: hf_config.from_hf(given), name)
        if rope:
            for key in ("rope_parameters", "rope_scaling", "rope_theta"):
                outcome(lambda given=whole | {key: value}: hf_config.from_hf(given), key)


@pytest.mark.parametrize("base", BASES)
def test_keys_that_are_read_and_not_written_are_refused_or_read(base: str) -> None:
    """Older names and defaults: what `to_hf` never says."""
    whole = hf_config.to_hf(BASES[base])
    bare = {k: v for k, v in whole.items() if k not in ("layer_types", "no_rope_layers")}
    file = ConfigFile(bare)
    FAMILIES[BASES[base].family].read(file)
    for key in file.asked - whole.keys():
        for value in filter(in_json, HOSTILE):
            for content in (whole, bare):
                try:
                    hf_config.from_hf(content | {key: value})
                except InvalidArgument as error:
                    assert key in error.message or "agree" in error.message, error.message


def test_the_bounds_themselves_can_be_computed() -> None:
    """The largest and the smallest of each number that allocates nothing."""
    base = BASES["llama"]
    for field in (*WHOLE, *REAL):
        for bound in (*WHOLE.get(field, ()), *REAL.get(field, ())):
            if field in {one.name for one in fields(ModelConfig)} & REAL.keys():
                assert logits_are_finite(replace(base, **{field: bound})), (field, bound)
            elif field == "rope_theta":
                assert logits_are_finite(replace(base, ropes=(Rope(bound),)))
            for scaling in SCALINGS.values():
                changed = asdict(scaling) | {field: bound}
                if field not in asdict(scaling) or not _in_order(changed):
                    continue
                changed |= {key: tuple(changed[key]) for key in ("short_factors", "long_factors")}
                rope = Rope(scaling=RopeScaling(**changed))
                assert logits_are_finite(replace(base, ropes=(rope,))), (field, bound)


def _in_order(scaling: dict[str, Any]) -> bool:
    return bool(
        scaling["low_freq_factor"] < scaling["high_freq_factor"]
        and scaling["beta_slow"] < scaling["beta_fast"]
    )


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"layers": 256, "hidden": 32768, "intermediate": 262144}, "weights, more than"),
        ({"heads": 32768, "kv_heads": 32768, "head_dim": 1024, "hidden": 32768}, "more than"),
        ({"context": 1_048_576, "head_dim": 1024}, "rotary tables of 1,073,741,824"),
        (
            {"context": 131_072, "head_dim": 1024, "ropes": (Rope(), Rope(), Rope())},
            "rotary tables of 402,653,184",
        ),
    ],
)
def test_products_of_sizes_are_bounded_too(sizes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        replace(BASES["llama"], **sizes)


def test_no_more_experts_than_their_maps_have_room_for() -> None:
    """Each is three modules, which weigh kilobytes however few numbers they hold; told at once."""
    fields = {"vocab_size": 9, "layers": 256, "hidden": 1, "heads": 1, "kv_heads": 1}
    fields |= {"head_dim": 2, "intermediate": 1, "context": 8}
    assert new_config("mixtral", **fields, experts=Experts(256, 2, 1)).layers == 256
    with pytest.raises(InvalidArgument, match="4096 in each of 256 layers, more than 65,536"):
        new_config("mixtral", **fields, experts=Experts(4096, 2, 1))


def test_ids_outside_the_vocabulary_are_left_out_of_a_file() -> None:
    """No token could be met that they name; older files have pad_token_id -1."""
    config = hf_config.to_hf(BASES["llama"]) | {"pad_token_id": -1, "eos_token_id": [2, 64, 128009]}
    read = hf_config.from_hf(config, {"eos_token_id": [3, 2, 9999]})
    assert (read.pad_id, read.eos_ids) == (None, (3, 2))
    with pytest.raises(InvalidArgument, match="eos_ids 64 is outside the vocabulary"):
        replace(BASES["llama"], eos_ids=(2, 64))


@pytest.mark.parametrize("base", BASES)
def test_what_is_written_is_read_back(base: str) -> None:
    config = BASES[base]
    assert hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config)))) == config
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
