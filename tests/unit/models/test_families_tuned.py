"""What becomes of a model of any family: adapters, merged, a judge, in other types, out of the
store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import families
from checkpoints import byte_tokenizer
from family_models import assert_near, hidden_of, ids_of, logits_of, made, random_model, saved
from plinth.models.adapters.lora import LoraConfig, adapters, attach
from plinth.models.adapters.merging import merge
from plinth.models.adapters.peft_format import put_on, read_adapter, save_adapter
from plinth.models.decoder import Decoder
from plinth.models.export import ExportOptions, export_artifact
from plinth.models.families import FAMILIES
from plinth.models.publish import import_model
from plinth.models.reward import RewardModel, load_reward_model, save_reward_model
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.reward.forward import ScoringModel
from plinth.shared.errors import InvalidArgument
from plinth.shared.store import ArtifactStore

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
every_family = pytest.mark.parametrize("family", FAMILIES)
LORA = LoraConfig(rank=3, alpha=9)
WORDS = 320  # as many as the byte tokenizer needs


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adapted(decoder: Decoder, config: LoraConfig = LORA) -> Decoder:
    """With adapters that say something."""
    attach(decoder, config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.2, generator=generator)
    return decoder


def source(family: str, folder: Path) -> Path:
    """A model with a tokenizer beside it."""
    keys = families.configurations(family)[1] | {"vocab_size": WORDS}
    return byte_tokenizer(saved(random_model(family, keys), folder))


@every_family
def test_adapters_compute_and_learn_what_pefts_do(family: str, tmp_path: Path) -> None:
    plain, decoder = made(family, 0, tmp_path / "base")
    adapted(decoder)
    save_adapter(decoder, LORA, tmp_path / "adapter", "base@1")
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True).eval()
    ids_bt = ids_of(2, 20)
    ours, theirs = logits_of(decoder, ids_bt), model(ids_bt).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for logits in (ours, theirs):
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids_bt[:, 1:].flatten()
        )
        loss.backward()
    theirs_by_name = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for name, adapter in adapters(decoder).items():
        for side, parameter in (("A", adapter.a), ("B", adapter.b)):
            wanted = theirs_by_name.pop(f"base_model.model.{name}.lora_{side}.default.weight")
            assert_near(parameter.grad, wanted, 1e-4)
    assert not theirs_by_name


@every_family
def test_an_adapter_on_the_output_map(family: str, tmp_path: Path) -> None:
    """Whose name in memory is another than in a GPT-NeoX's file."""
    keys = families.configurations(family)[0] | {"tie_word_embeddings": False}
    plain = random_model(family, keys)
    decoder = load_decoder(saved(plain, tmp_path / "base"))
    config = LoraConfig(rank=3, alpha=9, targets=(FAMILIES[family].names.head,))
    save_adapter(adapted(decoder, config), config, tmp_path / "adapter", "base@1")
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    again = put_on(load_decoder(tmp_path / "base"), read_adapter(tmp_path / "adapter"), "here")
    ids_bt = ids_of(2, 20)
    with torch.no_grad():
        theirs = model(ids_bt).logits
        assert not torch.allclose(
            theirs, logits_of(load_decoder(tmp_path / "base"), ids_bt), atol=1e-2
        )
        for ours in (decoder, again):
            torch.testing.assert_close(logits_of(ours, ids_bt), theirs, atol=1e-4, rtol=0)


@every_family
def test_pefts_own_adapter_on_the_output_map(family: str, tmp_path: Path) -> None:
    """PEFT keeps the base's map beside it; one that is not the base's is refused."""
    keys = families.configurations(family)[0] | {"tie_word_embeddings": False}
    plain = random_model(family, keys)
    saved(plain, tmp_path / "base")
    config = peft.LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=["lm_head"])
    model = peft.get_peft_model(plain, config).eval()
    for name, parameter in model.named_parameters():
        parameter.data += 0.2 if "lora_B" in name else 0.0
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    ours = put_on(load_decoder(tmp_path / "base"), read_adapter(tmp_path / "adapter"), "here")
    ids_bt = ids_of(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, ids_bt), model(ids_bt).logits, atol=1e-4, rtol=0)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.base_layer.weight"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(InvalidArgument, match=r"lm_head\.base_layer\.weight is not the base's"):
        put_on(load_decoder(tmp_path / "base"), read_adapter(tmp_path / "adapter"), "here")


@every_family
def test_merged_is_what_peft_merges(family: str, tmp_path: Path, store: ArtifactStore) -> None:
    base = import_model(
        store, str(source(family, tmp_path / "m")), "base", workspace=tmp_path / "w"
    )
    folder = store.fetch(base)
    decoder = adapted(load_decoder(folder))
    save_adapter(decoder, LORA, tmp_path / "adapter", base.ref)
    kind, told = merge(folder, base, tmp_path / "adapter", tmp_path / "merged")
    assert (kind, told) == ("model", [])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids_bt = ids_of(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids_bt).logits, theirs(ids_bt).logits, atol=1e-4, rtol=0)
        put = put_on(load_decoder(folder), read_adapter(tmp_path / "adapter"), "here")
        torch.testing.assert_close(logits_of(put, ids_bt), merged(ids_bt).logits, atol=1e-4, rtol=0)


def judged(folder: Path, family: str, ids_bt: torch.Tensor) -> torch.Tensor:
    """Scores by transformers' class, or by its decoder and the file's head where it has none."""
    name = FAMILIES[family].classifier
    assert hasattr(transformers, name) == (family != "granite")
    with torch.no_grad():
        if hasattr(transformers, name):
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
            assert type(model).__name__ == name
            scores: torch.Tensor = model(ids_bt).logits[:, 0]
            return scores
        body = transformers.AutoModel.from_pretrained(folder)
        head_1d = load_file(folder / "model.safetensors")["score.weight"]
        return (body(ids_bt).last_hidden_state[:, -1] @ head_1d.T)[:, 0]


@every_family
def test_a_judge_scores_as_in_transformers(family: str, tmp_path: Path) -> None:
    """One that we make of a language model, and one of theirs."""
    keys = families.configurations(family)[0]
    judge = RewardModel.of(load_decoder(saved(random_model(family, keys), tmp_path / "in")), seed=2)
    save_reward_model(judge, tmp_path / "ours")
    names = ["ours"]
    if hasattr(transformers, FAMILIES[family].classifier):
        saved(random_model(family, keys, classifier=True), tmp_path / "theirs")
        names.append("theirs")
    ids_bt = ids_of(3, 20)
    for name in names:
        folder = tmp_path / name
        opened = load_reward_model(folder)
        with torch.no_grad():
            hidden_nd, backend = hidden_of(opened, ids_bt)
            scores = opened.scores(hidden_nd[19::20].contiguous(), backend)
            truth = judged(folder, family, ids_bt)
            torch.testing.assert_close(scores, truth, atol=1e-4, rtol=0)
        served = ScoringModel(folder, "cpu").scores(ids_bt.tolist())
        torch.testing.assert_close(torch.tensor(served), truth, atol=1e-4, rtol=0)


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_kept_and_named(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(family, families.configurations(family)[1]).to(dtype)
    folder = saved(model, tmp_path / "in")
    decoder = load_decoder(folder)
    save_decoder(decoder, tmp_path / "out")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(after[n].dtype == dtype and torch.equal(after[n], before[n]) for n in before)
    narrow = load_decoder(folder, dtype=dtype)
    assert weights_digest(narrow.state_dict()) == weights_digest(folder)
    assert weights_digest(decoder.state_dict()) == weights_digest(folder, dtype=torch.float32)
    ids_bt = ids_of(1, 20)
    with torch.no_grad():
        truth = model(ids_bt).logits.float()
        assert_near(logits_of(narrow, ids_bt).float(), truth, 0.2)


@every_family
def test_out_of_the_store_it_opens_in_transformers(
    family: str, tmp_path: Path, store: ArtifactStore
) -> None:
    folder = source(family, tmp_path / "m")
    import_model(store, str(folder), "m", workspace=tmp_path / "w")
    export_artifact(store, "m", tmp_path / "out", ExportOptions(), workspace=tmp_path / "w")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids_bt = ids_of(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(again(ids_bt).logits, theirs(ids_bt).logits, atol=1e-5, rtol=0)
