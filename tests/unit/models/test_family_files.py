"""Files of each family: damaged ones, those of another family, and configs that no file can say.

Every error names the file and the tensor or key.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import families
from family_models import config_of, ids_of, logits_of, random_model, saved
from plinth.models.config import LayerKind
from plinth.models.families import FAMILIES, new_config
from plinth.models.hf import config as hf_config
from plinth.models.parts import Biases
from plinth.models.rope import Rope, RopeScaling
from plinth.models.weights import load_decoder
from plinth.shared.errors import DataLoss, InvalidArgument, PlinthError

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {
        family: saved(random_model(family, families.smallest(family)), root / family)
        for family in FAMILIES
    }


def with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """The same weights under another config.json; a change to `...` takes the key away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    target.mkdir(exist_ok=True)
    told = {key: value for key, value in config.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(told))
    weights = target / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(folder / "model.safetensors")
    return target


@every_family
def test_tensors_that_are_wrong_are_named(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Of every part of a layer, and of what there is once."""
    tensors = load_file(folders[family] / "model.safetensors")
    layer = FAMILIES[family].names.layer
    last = layer.format(1)
    named = [name for name in tensors if name.startswith(last) or layer.format(0) not in name]
    assert len(named) > 8
    folder = with_config(folders[family], tmp_path / "m")

    def refused(error: type[PlinthError], words: str, changed: dict[str, torch.Tensor]) -> None:
        (folder / "model.safetensors").unlink()
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(error, match=words):
            load_decoder(folder)

    for name in named:
        pattern, tensor = name.replace(".", r"\."), tensors[name]
        others = {other: value for other, value in tensors.items() if other != name}
        refused(InvalidArgument, f"'{pattern}' is missing", others)
        wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
        refused(InvalidArgument, f"'{pattern}' is .*asks for", others | {name: wide})
        broken = tensor.clone()
        broken.view(-1)[-1] = float("nan")
        refused(DataLoss, f"'{pattern}' holds NaN or infinity", others | {name: broken})
    for surplus in (f"{last}.surplus.weight", named[0].replace(last, layer.format(7)) + "s"):
        pattern = surplus.replace(".", r"\.")
        refused(
            InvalidArgument,
            f"'{pattern}' is not a part",
            tensors | {surplus: torch.zeros(1)},
        )


def test_a_checkpoint_under_another_familys_name(folders: dict[str, Path], tmp_path: Path) -> None:
    """Refused, by the key or the tensor that does not fit; or nothing in it is of one family alone,
    and it is computed as transformers does under that name."""
    refused, computed = set(), set()
    ids_bt = ids_of(1, 20)
    for own, other in itertools.permutations(FAMILIES, 2):
        folder = tmp_path / f"{own}-{other}"
        with_config(folders[own], folder, model_type=other)
        with pytest.raises(InvalidArgument, match=f"model_type '{own}', not '{other}'"):
            load_decoder(folder)
        with_config(folders[own], folder, model_type=other, architectures=...)
        try:
            decoder = load_decoder(folder)
        except InvalidArgument as error:
            assert error.field or "tensor" in error.message
            refused.add((own, other))
            continue
        computed.add((own, other))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(
                logits_of(decoder, ids_bt), model(ids_bt).logits, atol=1e-4, rtol=0
            )
    assert ("mistral", "llama") in computed
    assert len(refused) > 5 * len(computed)


@every_family
def test_windows_of_no_token_and_rules_without_numbers(family: str) -> None:
    config = families.smallest(family)
    base = hf_config.from_hf(json.loads(random_model(family, config).config.to_json_string()))
    written = hf_config.to_hf(base)
    if "sliding_window" in written:
        for window in (0, -1, 2.5, "4", True):
            with pytest.raises(InvalidArgument, match="sliding_window is"):
                hf_config.from_hf(written | {"sliding_window": window})
    if family == "gpt2":  # which does not turn
        return
    for kind, lacks in (
        *(("linear", "factor"), ("dynamic", "factor"), ("yarn", "factor"), ("llama3", "factor")),
        ("longrope", "short_factor"),
    ):
        rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4}
        rope = {"full_attention": rope} if family == "gemma3_text" else rope
        with pytest.raises(InvalidArgument, match=rf"rope_parameters.*\.{lacks} is missing"):
            hf_config.from_hf(written | {"rope_parameters": rope})


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("gemma3_text", "sliding_window_pattern"),
        ("smollm3", "no_rope_layer_interval"),
        ("qwen3_moe", "decoder_sparse_step"),
    ],
)
def test_every_layer_of_none(family: str, key: str) -> None:
    """As each 0th, which has no meaning: told, whether or not a list says it layer by layer."""
    written = json.loads(config_of(family, families.smallest(family)).to_json_string())
    bare = {k: v for k, v in written.items() if k not in ("layer_types", "no_rope_layers")}
    for content in (written, bare):
        for value in (0, -1, 2.5, "4", True):
            with pytest.raises(InvalidArgument, match=f"{key} is .* must be a whole number from 1"):
                hf_config.from_hf(content | {key: value})


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma3_text", "query_pre_attn_scalar"),
        ("granite", "logits_scaling"),
    ],
)
def test_a_number_that_is_kept_otherwise_is_written_as_it_was(family: str, key: str) -> None:
    """As a root or a reciprocal, which does not come back by itself."""
    content = config_of(family, families.smallest(family)).to_dict()
    for value in (*range(1, 400), 0.3, 2.7, 1000.1):
        assert hf_config.to_hf(hf_config.from_hf(content | {key: value}))[key] == value


def test_what_a_family_cannot_say_is_not_written() -> None:
    """Rather than a file that opens as another model."""
    sizes = {"vocab_size": 64, "layers": 2, "hidden": 16, "heads": 4, "kv_heads": 4}
    sizes |= {"head_dim": 4, "intermediate": 32, "context": 32}
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("llama", {"norm": "layer"}, "norm is 'layer'"),
        ("llama", {"layer_kinds": (LayerKind(8),) * 2}, "layer_kinds is"),
        ("mistral", {"layer_kinds": (LayerKind(8), LayerKind())}, "layer_kinds is"),
        ("qwen2", {"layer_kinds": (LayerKind(8), LayerKind(4))}, "layer_kinds is"),
        ("qwen2", {"biases": Biases()}, "biases is"),
        ("qwen3", {"logit_cap": 3.0}, "logit_cap is 3.0"),
        ("gemma3_text", {"embedding_scale": 2.0}, "embedding_scale is 2.0"),
        ("gemma3_text", {"attention_cap": 2.0}, "attention_cap is 2.0"),
        ("phi3", {"activation": "relu", "parallel": True}, "parallel is True"),
        ("olmo2", {"qk_norm": "head"}, "qk_norm is 'head'"),
        ("gpt2", {"attention_scale": 0.7}, "attention_scale is 0.7"),
        ("gpt_neox", {"norms": "both", "parallel": False}, "norms is 'both'"),
        ("gpt_neox", {"residual_scale": 0.5}, "residual_scale is 0.5, must be 1 where"),
        ("llama", {"residual_scale": 0.5}, "residual_scale is 0.5"),
        (
            "llama",
            {"ropes": (Rope(scaling=RopeScaling("dynamic", 2.0, original_context=12)),)},
            "context is 32, .* there it is 24",
        ),
    ]
    for family, changes, says in wrong:
        with pytest.raises(InvalidArgument, match=says):
            hf_config.to_hf(new_config(family, **sizes, **changes))


@every_family
def test_a_model_that_begins_here_can_be_written(family: str) -> None:
    config = new_config(
        family,
        **{"vocab_size": 64, "layers": 2, "hidden": 20, "heads": 5, "kv_heads": 5, "head_dim": 4},
        **{"intermediate": 32, "context": 32},
    )
    again = hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config))))
    assert (again.kinds, again.scale) == (config.kinds, config.scale)


def test_masks_among_the_weights_of_an_older_neox_are_passed_by(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_config(folders["gpt_neox"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4)
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_decoder(folder)


_LISTS = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0]}
# What transformers 4 wrote of rotary positions.
OLDER: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 100.0},
    "mistral": {"rope_theta": 50.0, "rope_scaling": None},
    "qwen2": {
        "rope_theta": 1000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "gemma3_text": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 500,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": ...,
        "sliding_window_pattern": 2,
        "sliding_window": 6,
    },
    "phi3": {
        "rope_theta": 200.0,
        "rope_scaling": {"type": "longrope", **_LISTS},
        "original_max_position_embeddings": 32,
    },
    "gpt_neox": {
        "rotary_pct": 0.5,
        "rotary_emb_base": 300,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "smollm3": {"rope_theta": 70.0, "no_rope_layers": ..., "no_rope_layer_interval": 2},
}


@pytest.mark.parametrize("family", OLDER)
def test_older_keys_mean_what_transformers_makes_of_them(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = load_decoder(folders[family])
    folder = with_config(folders[family], tmp_path / "m", rope_parameters=..., **OLDER[family])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids_bt = ids_of(2, 30)
    with torch.no_grad():
        truth = model(ids_bt).logits
        torch.testing.assert_close(
            logits_of(load_decoder(folder), ids_bt), truth, atol=1e-4, rtol=0
        )
        assert not torch.allclose(logits_of(plain, ids_bt), truth, atol=1e-2)
