"""A model keeps the types of its files through loading, tuning, merging and saving."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.models.adapters.lora import LoraConfig, adapters, attach, merged_tensors
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.dtypes import cast, change_lost, parse_dtype
from plinth.models.importer import import_source
from plinth.models.publish import import_adapter, import_model
from plinth.models.reward import RewardModel, load_reward_model, save_reward_model
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.shared.errors import InvalidArgument

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def checkpoint(family, folder, kind, **changes):
    changes = {"layers": 2, "dtype": KINDS[kind], **changes}
    return byte_tokenizer(FAMILIES[family](folder, **changes))


def weights(folder):
    return load_file(folder / "model.safetensors")


def adapted(folder, seed=5):
    """A decoder with an adapter that says something."""
    decoder = load_decoder(folder)
    attach(decoder, LoraConfig(rank=4, alpha=12), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.1, generator=generator)
    return decoder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_and_saved_is_the_same_bit_for_bit(family, tmp_path, kind) -> None:
    base = checkpoint(family, tmp_path / "base", kind)
    save_decoder(load_decoder(base), tmp_path / "again")
    before, after = weights(base), weights(tmp_path / "again")
    assert {t.dtype for t in after.values()} == {KINDS[kind]}
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert weights_digest(tmp_path / "again") == weights_digest(base)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == kind


def test_each_tensor_keeps_its_own_where_they_differ(tmp_path) -> None:
    base = checkpoint("llama", tmp_path / "base", "bfloat16")
    mixed = {
        name: tensor.float() if "norm" in name else tensor for name, tensor in weights(base).items()
    }
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    save_decoder(load_decoder(base), tmp_path / "again")
    after = weights(tmp_path / "again")
    assert {name: t.dtype for name, t in after.items()} == {n: t.dtype for n, t in mixed.items()}
    # transformers opens all in the type that the configuration names: one that holds each.
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_merge_is_pefts_of_the_same_base(family, store, tmp_path, kind) -> None:
    """PEFT's merge_and_unload of the base in its own type: within one rounding of each weight."""
    base = checkpoint(family, tmp_path / "base", kind)
    save_adapter(adapted(base), LoraConfig(rank=4, alpha=12), tmp_path / "adapter", str(base))
    import_model(store, str(base), "base", workspace=tmp_path / "work")
    record = import_adapter(
        store, tmp_path / "adapter", "tuned", base="base", workspace=tmp_path / "work"
    )
    folder = store.fetch(record)
    ours = weights(folder)
    assert {tensor.dtype for tensor in ours.values()} == {KINDS[kind]}
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert model.dtype == KINDS[kind]
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    for name, tensor in theirs.state_dict().items():
        if name in ours:
            ulp = torch.finfo(KINDS[kind]).eps
            assert torch.allclose(ours[name].float(), tensor.float(), rtol=ulp, atol=1e-6), name
    moved = sum(not torch.equal(ours[name], weights(base)[name]) for name in ours)
    assert moved == len(adapters(adapted(base)))
    reopened = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.allclose(
            reopened.float()(ids).logits, theirs.float()(ids).logits, rtol=0.05, atol=0.05
        )
    wide = import_adapter(
        store, tmp_path / "adapter", "wide", base="base", workspace=tmp_path / "work", dtype="fp32"
    )
    exact = merged_tensors(adapted(base))
    found = load_decoder(store.fetch(wide)).state_dict()
    assert all(torch.equal(found[name], exact[name]) for name in exact)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_keeps_its_bases_type(family, tmp_path, kind) -> None:
    base = checkpoint(family, tmp_path / "base", kind)
    model = RewardModel.of(load_decoder(base), seed=1)
    save_reward_model(model, tmp_path / "judge")
    found = weights(tmp_path / "judge")
    assert {tensor.dtype for tensor in found.values()} == {KINDS[kind]}
    save_reward_model(load_reward_model(tmp_path / "judge"), tmp_path / "again")
    assert all(torch.equal(t, found[n]) for n, t in weights(tmp_path / "again").items())


def test_a_new_decoder_is_saved_in_its_own(tmp_path) -> None:
    decoder = load_decoder(checkpoint("llama", tmp_path / "base", "bfloat16"))
    decoder.stored_dtypes = {}
    save_decoder(decoder, tmp_path / "new")
    assert {tensor.dtype for tensor in weights(tmp_path / "new").values()} == {torch.float32}


def test_what_fp16_does_not_hold_is_kept_in_float32(tmp_path) -> None:
    decoder = load_decoder(checkpoint("llama", tmp_path / "base", "float16"))
    with torch.no_grad():
        decoder.model.norm.weight[0] = 1e6
    save_decoder(decoder, tmp_path / "grown")
    found = weights(tmp_path / "grown")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert float(found["model.norm.weight"][0]) == 1e6


@pytest.mark.parametrize(("asked", "kind"), [("fp32", "float32"), ("fp16", "float16")])
def test_an_import_may_say_another_type(store, tmp_path, asked, kind) -> None:
    base = checkpoint("gpt2", tmp_path / "base", "bfloat16")
    kept = import_model(store, str(base), "m", workspace=tmp_path / "work")
    other = import_model(store, str(base), "m", workspace=tmp_path / "work", dtype=asked)
    assert (kept.version, other.version) == (1, 2)
    assert {t.dtype for t in weights(store.fetch(kept)).values()} == {torch.bfloat16}
    found = weights(store.fetch(other))
    assert {t.dtype for t in found.values()} == {KINDS[kind]}
    before = weights(base)
    assert all(torch.equal(t, before[n].to(KINDS[kind])) for n, t in found.items())
    assert import_model(store, str(base), "m", workspace=tmp_path / "work", dtype=asked) == other


def test_a_number_that_a_type_does_not_hold_is_named(tmp_path) -> None:
    base = checkpoint("llama", tmp_path / "base", "float32")
    tensors = weights(base)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidArgument, match=r"'model\.norm\.weight' holds .* 65504") as caught:
        import_source(str(base), tmp_path / "out", dtype=torch.float16)
    assert "use bf16 or fp32" in caught.value.message
    for advised in (torch.bfloat16, torch.float32):
        import_source(str(base), tmp_path / str(advised), dtype=advised)
    assert not (tmp_path / "out").exists()


def test_what_rounding_takes_of_a_change(tmp_path) -> None:
    """Against the definition, on a change of some 2^-9 of each weight: most of it is lost."""
    base = checkpoint("llama", tmp_path / "base", "bfloat16", layers=1)
    decoder = load_decoder(base)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1 + 2**-10)
    trained = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    save_decoder(decoder, tmp_path / "tuned")
    saved = load_decoder(tmp_path / "tuned").state_dict()
    norm = lambda a, b: sum(float((a[n] - b[n]).double().square().sum()) for n in a) ** 0.5  # noqa: E731
    found = change_lost(base, trained, tmp_path / "tuned")
    assert found == pytest.approx(norm(saved, trained) / norm(trained, before))
    assert found > 0.9
    assert change_lost(base, before, base) == 0.0


def test_a_merge_that_rounding_takes_much_of_says_so_and_how_to_keep_it(store, tmp_path) -> None:
    base = checkpoint("llama", tmp_path / "base", "bfloat16", layers=1)
    decoder = adapted(base)
    for adapter in adapters(decoder).values():
        adapter.b.data.mul_(1e-3)
    config = LoraConfig(rank=4, alpha=12)
    save_adapter(decoder, config, tmp_path / "adapter", "base@1")
    import_model(store, str(base), "base", workspace=tmp_path / "work")

    def told(**options):
        record = import_adapter(
            store, tmp_path / "adapter", "t", base="base", workspace=tmp_path / "work", **options
        )
        return record.manifest["extra"]["warnings"]

    (warning,) = told()
    assert "of what the adapter changes (in its norm); say --dtype fp32" in warning
    assert "rounding to bf16 took" in warning
    assert told(dtype="fp32") == []


def test_unknown_types_are_refused() -> None:
    assert parse_dtype("keep") is None
    with pytest.raises(InvalidArgument, match="must be keep, fp32, bf16, fp16"):
        parse_dtype("int8")
    tensor = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert cast(tensor, None, "x") is tensor


@pytest.mark.parametrize("kind", KINDS)
def test_a_folders_digest_in_a_type_is_that_of_the_decoder_loaded_so(
    family, tmp_path, kind
) -> None:
    base = checkpoint(family, tmp_path / "base", kind, layers=1)
    loaded = weights_digest(load_decoder(base).state_dict())
    assert weights_digest(base, dtype=torch.float32) == loaded
    assert (weights_digest(base) == loaded) == (kind == "float32")
