"""Adapters: what they compute and learn against PEFT's, and what a frozen base is."""

from __future__ import annotations

import pytest
import torch
import transformers

from checkpoints import random_gpt2, random_llama
from plinth.engine.plan import Row
from plinth.engine.runner import Runner
from plinth.kernels.paged import KvCache
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.lora import (
    LoraConfig,
    adapters,
    attach,
    base_tensors,
    dropping,
    merged_tensors,
    switched_off,
    target_names,
)
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.shared.errors import InvalidArgument

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

B, T = 2, 19
FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}


def ids_of(seed=0):
    return torch.randint(3, 300, (B, T), generator=torch.Generator().manual_seed(seed))


def logits_of(decoder, ids_bt):
    backend = SdpaBackend(*ids_bt.shape)
    positions = torch.arange(ids_bt.shape[1]).repeat(len(ids_bt))
    hidden = decoder(ids_bt.reshape(-1), positions, backend)
    return decoder.logits(hidden, backend).view(*ids_bt.shape, -1)


def adapted(folder, config, seed=1):
    """A decoder whose adapters say something."""
    decoder = load_decoder(folder)
    attach(decoder, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.1, generator=generator)
    return decoder


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return FAMILIES[request.param](tmp_path / "base")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=4, alpha=8),
        LoraConfig(rank=3, alpha=7.5, rslora=True),
        LoraConfig(rank=5, targets=("c_proj", "q_proj", "down_proj")),
    ],
    ids=["plain", "rslora", "targets"],
)
def test_outputs_and_gradients_are_those_of_peft(folder, tmp_path, config) -> None:
    family = load_decoder(folder).config.family
    known = {"llama": {"q_proj", "down_proj"}, "gpt2": {"c_proj"}}[family]
    targets = tuple(t for t in config.targets if t in known)
    config = LoraConfig(config.rank, config.alpha, targets=targets, rslora=config.rslora)
    decoder = adapted(folder, config)
    save_adapter(decoder, config, tmp_path / "adapter", "base@1")
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        tmp_path / "adapter",
        is_trainable=True,
    ).eval()
    ids = ids_of()
    ours, theirs = logits_of(decoder, ids), model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    with torch.no_grad(), switched_off(decoder):
        assert not torch.allclose(logits_of(decoder, ids), theirs, atol=1e-2)
    for logits in (ours, theirs):
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
    wanted = dict(model.named_parameters())
    for name, adapter in adapters(decoder).items():
        for side, parameter in (("A", adapter.a), ("B", adapter.b)):
            truth = wanted[f"base_model.model.{name}.lora_{side}.default.weight"].grad
            assert torch.allclose(parameter.grad, truth, atol=1e-5, rtol=1e-4), (name, side)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapters(decoder))
    assert sum(p.requires_grad for p in decoder.parameters()) == len(trained)
    assert all(p.grad is None for p in decoder.parameters() if not p.requires_grad)


def test_a_fresh_adapter_changes_no_bit_and_its_seed_decides_it(folder) -> None:
    plain = load_decoder(folder)
    ids = ids_of()
    made = [load_decoder(folder) for _ in range(3)]
    for decoder, seed in zip(made, (7, 7, 8), strict=True):
        attach(decoder, LoraConfig(rank=4), seed)
    with torch.no_grad():
        assert torch.equal(logits_of(plain, ids), logits_of(made[0], ids))
    firsts = [next(iter(adapters(decoder).values())).a for decoder in made]
    assert torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], firsts[2])
    bound = firsts[0].shape[1] ** -0.5
    assert 0.9 * bound < float(firsts[0].detach().abs().max()) <= bound


def test_merged_equals_unmerged(folder, tmp_path) -> None:
    config = LoraConfig(rank=4, alpha=16)
    decoder, plain = adapted(folder, config), load_decoder(folder)
    save_decoder(decoder, tmp_path / "merged")
    merged = load_decoder(tmp_path / "merged")
    for name, tensor in base_tensors(decoder).items():
        assert torch.equal(tensor, plain.state_dict()[name])
    ids = ids_of()
    with torch.no_grad():
        assert torch.allclose(logits_of(decoder, ids), logits_of(merged, ids), atol=2e-4)
        assert not torch.allclose(logits_of(plain, ids), logits_of(merged, ids), atol=1e-2)


def test_the_engine_computes_adapted_weights_and_names_them_as_the_merged_model(
    folder, tmp_path
) -> None:
    decoder = adapted(folder, LoraConfig(rank=4, alpha=16))
    runners = [
        Runner(decoder, KvCache(decoder.states, 8, 16), native=native) for native in (True, False)
    ]
    save_decoder(decoder, tmp_path / "merged")
    ids = ids_of()[0]
    for step in range(2):  # the second time with other values in the same tensors
        with torch.no_grad():
            wanted = logits_of(decoder, ids[None])[0, -1]
        for runner in runners:
            digest = runner.renew_weights()
            assert digest == weights_digest(merged_tensors(decoder))
            row = Row(0, 0, tuple(ids.tolist()), ((0, (0, 1)),), 1)
            (result,) = runner.run_rows([row])
            assert torch.allclose(result.logits_mv[0], wanted, atol=2e-4)
        if step == 0:
            assert digest == weights_digest(tmp_path / "merged")
            with torch.no_grad():
                for adapter in adapters(decoder).values():
                    adapter.b.mul_(-1.5)


def test_dropout_is_a_function_of_its_seed_and_off_elsewhere(folder) -> None:
    config = LoraConfig(rank=4, alpha=16, dropout=0.5)
    decoder, still = adapted(folder, config), adapted(folder, LoraConfig(rank=4, alpha=16))
    ids = ids_of()

    def dropped(seed, number):
        with dropping(decoder, seed, number):
            return logits_of(decoder, ids)

    with torch.no_grad():
        first = dropped(3, 5)
        torch.rand(9)  # the process's own noise has no part in it
        assert torch.equal(first, dropped(3, 5))
        assert not torch.equal(first, dropped(3, 6))
        assert not torch.equal(first, dropped(4, 5))
        assert torch.equal(logits_of(decoder, ids), logits_of(still, ids))
    # Its mean is the input: over many draws the adapter adds what it adds without dropout.
    adapter = next(iter(adapters(decoder).values()))
    x = torch.ones(20_000, adapter.a.shape[1])
    zero = torch.zeros(len(x), adapter.b.shape[0])
    with torch.no_grad(), dropping(decoder, 0, 0):
        noisy = adapter.add_to(zero, x)
    assert torch.allclose(noisy.mean(0), adapter.delta().sum(1), atol=0.02)


def test_targets_follow_pefts_rule(tmp_path) -> None:
    llama = load_decoder(random_llama(tmp_path / "l", layers=2, tied=False))
    names = target_names(llama, "llama", ())
    assert len(names) == 14
    assert target_names(llama, "llama", ("q_proj",)) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert target_names(llama, "llama", ("lm_head", "layers.1.mlp.up_proj")) == [
        "model.layers.1.mlp.up_proj",
        "lm_head",
    ]
    gpt2 = load_decoder(random_gpt2(tmp_path / "g", layers=1))
    assert target_names(gpt2, "gpt2", ("attn.c_proj",)) == ["transformer.h.0.attn.c_proj"]
    assert len(target_names(gpt2, "gpt2", ())) == 4
    for wrong in ("proj", "c_attn", "model.embed_tokens", "norm"):
        with pytest.raises(InvalidArgument, match="is no linear map of this model; there are"):
            target_names(llama, "llama", ("q_proj", wrong))


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"rank": 100_000},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"targets": ("",)},
    ],
)
def test_a_wrong_field_is_named(fields) -> None:
    with pytest.raises(InvalidArgument) as caught:
        LoraConfig(**fields)
    assert caught.value.field == next(iter(fields))
