"""The shape of a decoder, in one frozen dataclass, and its Hugging Face spelling.

Knows two families: `llama` (RMSNorm, rotary positions, grouped-query attention, SwiGLU) and
`gpt2` (LayerNorm, learned positions, GELU). Anything that a config asks for and this module does
not know is an error, never a guess. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plinth.shared.errors import InvalidArgument

Family = Literal["llama", "gpt2"]

# Large enough for every model that fits a machine of ours, small enough that a hostile
# config.json cannot ask for an absurd allocation.
MAX_LAYERS, MAX_HIDDEN, MAX_VOCAB, MAX_CONTEXT = 256, 32768, 1_000_000, 1_048_576


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched: `linear`, or `llama3` (by wavelength)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one decoder. Units: tokens for `context`, features for widths."""

    family: Family
    vocab_size: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise InvalidArgument naming the first field that cannot be right."""
        limits = {
            "vocab_size": MAX_VOCAB,
            "layers": MAX_LAYERS,
            "hidden": MAX_HIDDEN,
            "heads": MAX_HIDDEN,
            "kv_heads": MAX_HIDDEN,
            "head_dim": 1024,
            "intermediate": 8 * MAX_HIDDEN,
            "context": MAX_CONTEXT,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise InvalidArgument(
                    f"model config: {name} is {value}, must be 1 to {limit}", field=name
                )
        if self.family not in ("llama", "gpt2"):
            raise InvalidArgument(
                f"model config: family {self.family!r} is unknown, use 'llama' or 'gpt2'",
                field="family",
            )
        if self.heads % self.kv_heads:
            raise InvalidArgument(
                f"model config: {self.heads} heads cannot share {self.kv_heads} KV heads evenly",
                field="kv_heads",
            )
        if self.family == "gpt2" and self.kv_heads != self.heads:
            raise InvalidArgument(
                "model config: GPT-2 has as many KV heads as heads", field="kv_heads"
            )
        if self.family == "llama" and self.head_dim % 2:
            raise InvalidArgument(
                f"model config: rotary positions need an even head_dim, not {self.head_dim}",
                field="head_dim",
            )
        if self.family == "gpt2" and self.heads * self.head_dim != self.hidden:
            raise InvalidArgument(
                f"model config: {self.heads} heads × {self.head_dim} is not hidden {self.hidden}",
                field="heads",
            )
        for field in ("bos_id", "pad_id"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < self.vocab_size:
                raise InvalidArgument(
                    f"model config: {field} {value} is outside the vocabulary of {self.vocab_size}",
                    field=field,
                )

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read `config.json` (and `generation_config.json` for the end-of-sequence ids).

        Raises InvalidArgument for an unknown architecture, code that would have to be run
        (`auto_map`), quantised weights, or a variant that this decoder does not compute.
        """
        if config.get("auto_map"):
            raise InvalidArgument(
                "config.json: auto_map asks to run code from the checkpoint; "
                "Plinth runs none. Convert the model to a plain Llama or GPT-2 first",
                field="auto_map",
            )
        if config.get("quantization_config"):
            raise InvalidArgument(
                "config.json: quantised checkpoints cannot be opened; "
                "import the fp32, fp16 or bf16 weights, or a GGUF file",
                field="quantization_config",
            )
        kind = config.get("model_type")
        try:
            if kind == "llama":
                return _from_llama(config, generation or {})
            if kind == "gpt2":
                return _from_gpt2(config, generation or {})
        except KeyError as missing:
            name = str(missing.args[0])
            raise InvalidArgument(f"config.json: {name!r} is missing", field=name) from missing
        except (TypeError, ValueError) as wrong:
            raise InvalidArgument(f"config.json: {wrong}") from wrong
        raise InvalidArgument(
            f"config.json: model_type {kind!r} is unknown; Plinth opens 'llama' and 'gpt2'",
            field="model_type",
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers opens."""
        return _to_llama(self) if self.family == "llama" else _to_gpt2(self)


def _eos_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids of both files, without repeats, in the order in which they stand."""
    found: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if (known := _known_id(item, config)) is not None and known not in found:
                found.append(known)
    return tuple(found)


def _known_id(value: Any, config: Mapping[str, Any]) -> int | None:
    """A special id, or None where the vocabulary does not hold it (it could never be met)."""
    return None if value is None or not 0 <= int(value) < int(config["vocab_size"]) else int(value)


def _require(config: Mapping[str, Any], name: str, allowed: tuple[Any, ...], default: Any) -> None:
    value = config.get(name, default)
    if value not in allowed:
        wanted = " or ".join(repr(a) for a in allowed)
        raise InvalidArgument(f"config.json: {name} is {value!r}, only {wanted} works", field=name)


def _from_llama(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    _require(config, "hidden_act", ("silu",), "silu")
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if heads < 1:
        raise InvalidArgument("config.json: num_attention_heads must be at least 1")
    # transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return ModelConfig(
        family="llama",
        vocab_size=int(config["vocab_size"]),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(config["intermediate_size"]),
        context=int(config["max_position_embeddings"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(theta),
        rope_scaling=_rope_scaling(rope),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        bos_id=_known_id(config.get("bos_token_id"), config),
        eos_ids=_eos_ids(config, generation),
        pad_id=_known_id(config.get("pad_token_id"), config),
    )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise InvalidArgument(
        f"config.json: rope type {kind!r} is unknown; 'default', 'linear' and 'llama3' work",
        field="rope_scaling",
    )


def _from_gpt2(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    _require(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    _require(config, "scale_attn_weights", (True,), True)
    _require(config, "scale_attn_by_inverse_layer_idx", (False,), False)
    _require(config, "reorder_and_upcast_attn", (False,), False)
    _require(config, "add_cross_attention", (False,), False)
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    if heads < 1 or hidden % heads:
        raise InvalidArgument(f"config.json: n_embd {hidden} does not divide by n_head {heads}")
    return ModelConfig(
        family="gpt2",
        vocab_size=int(config["vocab_size"]),
        layers=int(config["n_layer"]),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=int(config.get("n_inner") or 4 * hidden),
        context=int(config["n_positions"]),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        attention_bias=True,
        mlp_bias=True,
        bos_id=_known_id(config.get("bos_token_id"), config),
        eos_ids=_eos_ids(config, generation),
        pad_id=_known_id(config.get("pad_token_id"), config),
    )


def _special_ids(config: ModelConfig) -> dict[str, Any]:
    eos = config.eos_ids
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else (list(eos) or None),
        "pad_token_id": config.pad_id,
    }


def _to_llama(config: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "dtype": "float32",
        **_special_ids(config),
    }


def _to_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.intermediate,
        "n_positions": config.context,
        "n_ctx": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "dtype": "float32",
        **_special_ids(config),
    }
