"""Models of experts: transformers' logits, loss, gradients and files; what is refused, by name;
what LoRA adapts; as reward models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import random_mixtral, random_qwen3_moe
from family_models import assert_near, gradients_of
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.linear_maps import map_names
from plinth.models.adapters.lora import LoraConfig, adapters, attach
from plinth.models.adapters.peft_format import put_on, read_adapter, save_adapter
from plinth.models.config import Biases, Experts, LayerKind
from plinth.models.decoder import Decoder
from plinth.models.families import new_config
from plinth.models.hf import config as hf_config
from plinth.models.hf.folder import read_json
from plinth.models.layers import Linear
from plinth.models.mixture import Map
from plinth.models.reward import RewardModel, load_reward_model, save_reward_model
from plinth.models.weights import load_decoder, save_decoder
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.trainer.objectives.batch import Batch, language_loss_sum, nll_sum, plain_positions

MADE = {"mixtral": random_mixtral, "qwen3_moe": random_qwen3_moe}
BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 0.05}
IDS = torch.randint(3, 320, (2, 21), generator=torch.Generator().manual_seed(1))


def _logits(decoder: Decoder) -> Tensor:
    b, t = IDS.shape
    backend = SdpaBackend(b, t)
    positions = plain_positions(b, t).reshape(-1)
    return decoder.logits(decoder(IDS.flatten(), positions, backend), backend).view(b, t, -1)


@pytest.mark.parametrize("family", MADE)
def test_loss_and_gradients_with_the_balance(family: str, tmp_path: Path) -> None:
    folder = MADE[family](tmp_path / "theirs", **BALANCED)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    decoder, (b, t) = load_decoder(folder), IDS.shape
    truth = theirs(IDS, labels=IDS).loss
    truth.backward()
    learn = torch.ones(b, t, dtype=torch.bool)
    learn[:, -1] = False  # transformers shifts labels; the last token has nothing to predict
    batch = Batch(IDS, IDS.roll(-1, 1), plain_positions(b, t), learn)
    loss = language_loss_sum(decoder, batch) / batch.weight
    loss.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=0)
    wanted = gradients_of(theirs, family)
    for name, parameter in decoder.named_parameters():
        assert_near(parameter.grad, wanted.pop(name), 1e-4, noise=1e-9)
    assert not wanted
    plain = nll_sum(decoder, batch) / batch.weight
    assert float((loss - plain).detach()) > 0.01


def test_padding_does_not_count_in_the_balance(tmp_path: Path) -> None:
    """Segment 0 of a packed batch; the answers alone are learnt, yet all tokens are balanced."""
    folder = random_qwen3_moe(tmp_path / "theirs", **BALANCED)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    decoder, (b, t) = load_decoder(folder), IDS.shape
    segments = torch.ones(b, t, dtype=torch.int64)
    segments[1, 15:] = 0
    learn = (segments > 0) & (torch.arange(t) > 6) & (torch.arange(t) < t - 1)
    learn[1, 14] = False
    batch = Batch(IDS, IDS.roll(-1, 1), plain_positions(b, t), learn, segments)
    labels = torch.where(learn.roll(1, 1), IDS, -100)
    truth = theirs(IDS, attention_mask=segments, labels=labels).loss
    torch.testing.assert_close(
        language_loss_sum(decoder, batch) / batch.weight, truth, rtol=1e-5, atol=0
    )


def test_router_logits_of_a_forward(tmp_path: Path) -> None:
    """Of each layer with experts; of the last, of the rows that are wanted."""
    folder = random_qwen3_moe(tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    decoder, (b, t) = load_decoder(folder), IDS.shape
    positions, rows = plain_positions(b, t).reshape(-1), torch.tensor([3, 20, 40])
    found: list[Tensor] = []
    with torch.no_grad():
        decoder(IDS.flatten(), positions, SdpaBackend(b, t), rows, found)
        truth = theirs(IDS, output_router_logits=True).router_logits
    assert len(found) == len(truth) == 2
    torch.testing.assert_close(found[0], truth[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found[1], truth[1][rows], atol=1e-4, rtol=1e-5)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "keys", "field", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 7}, "num_experts_per_tok", "than the 6 experts"),
        ("qwen3_moe", {"num_experts_per_tok": 8}, "num_experts_per_tok", "than the 7 experts"),
        ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok", "from 1 to 4,096"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts", "from 1 to 4,096"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts", "from 1 to 4,096"),
        ("qwen3_moe", {"num_experts": 7.5}, "num_experts", "a whole number"),
        ("qwen3_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size", "from 1 to"),
        ("qwen3_moe", {"moe_intermediate_size": True}, "moe_intermediate_size", "from 1 to"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step", "number from 1"),
        ("qwen3_moe", {"mlp_only_layers": [3]}, "mlp_only_layers", "0 to 2"),
        ("qwen3_moe", {"mlp_only_layers": [-1]}, "mlp_only_layers", "0 to 2"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers", "0 to 2"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers", "a list"),
        ("qwen3_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob", "true or false"),
        ("qwen3_moe", {"num_local_experts": 7, "num_experts": 5}, "num_local_experts", "agree"),
        ("qwen3_moe", {"qkv_bias": True}, "qkv_bias", "must be False"),
        ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm", "must be True"),
        ("mixtral", {"router_aux_loss_coef": -1.0}, "router_aux_loss_coef", "from 0"),
        ("mixtral", {"output_router_logits": 1}, "output_router_logits", "true or false"),
        ("mixtral", {"sliding_window": 0}, "sliding_window", "from 1"),
        ("mixtral", {"shared_expert_intermediate_size": 8}, "shared_expert", "unknown"),
        ("qwen3_moe", {"n_group": 2}, "n_group", "unknown"),
    ],
)  # fmt: skip
def test_a_key_is_refused_by_its_name(
    family: str, keys: dict[str, Any], field: str, message: str, tmp_path: Path
) -> None:
    config = read_json(MADE[family](tmp_path / "m") / "config.json")
    if "num_experts" in keys and "num_local_experts" not in keys:
        del config["num_local_experts"]
    with pytest.raises(InvalidArgument, match=message) as refused:
        hf_config.from_hf(config | keys)
    assert refused.value.field.startswith(field)
    assert field in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gated": False}, "gated is False, must be True where there are"),
        ({"biases": Biases(mlp=True)}, "biases.mlp is True, must be False where"),
        ({"parallel": True}, "parallel is True, must be False where"),
        ({"residual_scale": 0.5}, "residual_scale is 0.5, must be 1 where there are experts"),
        ({"experts": Experts(4, 5, 8)}, "experts.chosen is 5, must be no more than the 4 experts"),
        ({"experts": Experts(4, 2, 0)}, "experts.width is 0"),
        ({"experts": Experts(4, 2, 8, balance=float("nan"))}, "experts.balance is nan"),
        ({"experts": None, "layer_kinds": (LayerKind(experts=True),)}, r"layer_kinds\[0\].experts"),
    ],
)
def test_a_config_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    fields = {"vocab_size": 9, "layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "head_dim": 8}
    fields |= {"intermediate": 8, "context": 8, "experts": Experts(4, 2, 8)}
    with pytest.raises(InvalidArgument, match=message):
        new_config("mixtral", **(fields | changed))


def test_experts_that_a_file_lacks_are_told_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = MADE["mixtral"](tmp_path / "m")
    config = read_json(folder / "config.json") | {"num_local_experts": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("plinth.models.weights.Decoder", None)
    with pytest.raises(
        InvalidArgument, match=r"experts\.4095\.w2\.weight.* \(and 2 more\) is miss"
    ):
        load_decoder(folder)


def test_the_two_names_of_a_count_may_both_be_there(tmp_path: Path) -> None:
    config = read_json(MADE["qwen3_moe"](tmp_path / "m") / "config.json")
    assert hf_config.from_hf(config | {"num_experts": 7}) == hf_config.from_hf(config)


def test_a_family_without_experts_has_none() -> None:
    fields = {"vocab_size": 9, "layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "head_dim": 8}
    config = new_config("llama", **fields, intermediate=8, context=8, experts=Experts(4, 2, 8))
    with pytest.raises(InvalidArgument, match=r"'llama'.*'router'"):
        Decoder(config)


EXPERT = "model.layers.2.mlp.experts.6.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(EXPERT), InvalidArgument, "experts.6.down_proj.weight' is missing"),
        (lambda t: t.update({EXPERT: t[EXPERT].t().contiguous()}), InvalidArgument, r"\[40, 64\]"),
        (lambda t: t[EXPERT].fill_(float("nan")), DataLoss, "6.down_proj.weight' holds NaN"),
        (
            lambda t: t.update({EXPERT.replace(".6.", ".7."): t[EXPERT].clone()}),
            InvalidArgument,
            "experts.7.down_proj.weight' is not a part",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.zeros(7, 64)}),
            InvalidArgument,
            "layers.1.mlp.gate.weight' is not a part",
        ),
    ],
    ids=["missing", "turned", "nan", "surplus", "router of a plain layer"],
)  # fmt: skip
def test_a_tensor_is_refused_by_its_name(
    change: Any, error: type, message: str, tmp_path: Path
) -> None:
    folder = random_qwen3_moe(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(error, match=message):
        load_decoder(folder)


# -- adapters, reward models -----------------------------------------------------------------------


def test_a_new_models_weights() -> None:
    """Maps back into the residual stream are smaller, an expert's too."""
    config = new_config(
        "mixtral", vocab_size=64, layers=2, hidden=64, heads=2, kv_heads=1, head_dim=32,
        intermediate=96, context=16, experts=Experts(4, 2, 96),
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.init_weights(3)
    of = {name: float(p.detach().std()) for name, p in decoder.named_parameters() if p.dim() == 2}
    layer = "model.layers.1.block_sparse_moe"
    for name in ("gate", "experts.0.w1", "experts.3.w3"):
        assert of[f"{layer}.{name}.weight"] == pytest.approx(0.02, rel=0.2)
    assert of[f"{layer}.experts.2.w2.weight"] == pytest.approx(0.01, rel=0.1)
    assert config.parameters == sum(p.numel() for p in decoder.parameters() if p.dim() == 2)


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("family", "keys"), [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", {"mlp_only_layers": []})]
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_on_attention_and_open_in_peft(
    family: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = MADE[family](tmp_path / "base", **keys)
    decoder = load_decoder(base)
    attach(decoder, LoraConfig(rank=3), seed=1)
    assert {name.rpartition(".")[2] for name in adapters(decoder)} == ATTENTION
    assert list(adapters(decoder)) == map_names(family, 3, head=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.1, generator=generator)
        logits = _logits(decoder)
    save_adapter(decoder, LoraConfig(rank=3), tmp_path / "adapter", "base@1")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        plain = theirs(IDS).logits
        opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        torch.testing.assert_close(logits, opened(IDS).logits, atol=1e-4, rtol=1e-5)
        assert float((logits - plain).abs().max()) > 0.1
        again = put_on(load_decoder(base), read_adapter(tmp_path / "adapter"), "adapter")
        assert torch.equal(_logits(again), logits)
        save_decoder(decoder, tmp_path / "merged")
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits, merged(IDS).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("target", ["w1", "gate", "gate_proj", "experts.0.w2"])
def test_experts_and_routers_are_no_targets(target: str, tmp_path: Path) -> None:
    decoder = load_decoder(random_mixtral(tmp_path / "base", layers=1))
    with pytest.raises(InvalidArgument, match=f"'{target}' is no linear map.*there are q_proj"):
        attach(decoder, LoraConfig(targets=(target,)), seed=0)
    plain = load_decoder(random_qwen3_moe(tmp_path / "plain"))
    with pytest.raises(InvalidArgument, match="'up_proj' is no linear map"):
        attach(plain, LoraConfig(targets=("up_proj",)), seed=0)
    maps = {name for name, module in decoder.named_modules() if isinstance(module, Map)}
    assert len(maps) == 1 + 6 * 3
    assert not any(isinstance(decoder.get_submodule(name), Linear) for name in maps)


@pytest.mark.parametrize("family", MADE)
def test_as_a_reward_model(family: str, tmp_path: Path) -> None:
    model = RewardModel.of(load_decoder(MADE[family](tmp_path / "base")), seed=4)
    save_reward_model(model, tmp_path / "reward")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", pad_token_id=1
    ).eval()
    again, (b, t) = load_reward_model(tmp_path / "reward"), IDS.shape
    backend = SdpaBackend(b, t)
    with torch.no_grad():
        hidden = again(IDS.flatten(), plain_positions(b, t).reshape(-1), backend)
        scores = again.scores(hidden.view(b, t, -1)[:, -1], backend)
        torch.testing.assert_close(scores, theirs(IDS).logits[:, 0], atol=1e-4, rtol=1e-5)
