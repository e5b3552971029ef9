"""Exported folders as others open them: transformers, PEFT, llama.cpp's converter."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.kernels.training import SdpaBackend
from plinth.models import sharded, whole_folder
from plinth.models.adapters.lora import LoraConfig, adapters, attach
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.dtypes import DTYPES
from plinth.models.export import ExportOptions, export_artifact
from plinth.models.publish import import_model
from plinth.models.reward import RewardModel, load_reward_model, save_reward_model
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}
IDS = torch.arange(3, 43)[None]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def base(family, store, tmp_path):
    """A bf16 checkpoint in shards, made by transformers and imported as "base"."""
    source = FAMILIES[family](
        tmp_path / "source", layers=2, dtype=torch.bfloat16, max_shard_size="100KB"
    )
    assert len(list(source.glob("*.safetensors"))) > 1
    (byte_tokenizer(source) / "README.md").write_text("---\nlicense: mit\n---\n")
    import_model(store, str(source), "base", workspace=tmp_path / "work")
    return source


@pytest.fixture
def small(store, tmp_path):
    source = byte_tokenizer(random_llama(tmp_path / "small", layers=1))
    return import_model(store, str(source), "small", workspace=tmp_path / "work")


def exported(store, ref, out, **options):
    return export_artifact(
        store, ref, out, ExportOptions(**options), workspace=out.parent / "export-work"
    )


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.float().eval()(ids).logits


def ours(decoder, ids=IDS):
    backend = SdpaBackend(1, ids.shape[1])
    with torch.no_grad():
        hidden = decoder(ids[0], torch.arange(ids.shape[1]), backend)
        return decoder.logits(hidden, backend)[None]


def publish_adapter(store, folder, base="base", reward=False):
    """An adapter of the artifact `base`, as a job publishes one."""
    record = store.get(base)
    decoder = load_decoder(store.fetch(record))
    if reward:
        decoder = RewardModel.of(decoder, seed=2)
    attach(decoder, LoraConfig(rank=4, alpha=12), 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.1, generator=generator)
    save_adapter(decoder, LoraConfig(rank=4, alpha=12), folder, record.ref)
    digests = {record.ref: record.digest}
    store.publish("tuned", "adapter", folder, parents=[record.ref], data_digests=digests)
    return decoder


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_a_model_is_the_one_that_was_imported(base, store, tmp_path, shards) -> None:
    made = exported(store, "base", tmp_path / "out", max_shard_size=shards)
    assert (made.ref, made.kind, made.dtype) == ("base@1", "model", "bf16")
    assert made.size == sum(f.stat().st_size for f in made.folder.iterdir())
    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    assert model.dtype == torch.bfloat16
    source = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(logits(model), logits(source))
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.folder)
    before = transformers.AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": "Hello, 42!"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(
        chat, tokenize=False
    )
    assert tokenizer.eos_token_id == before.eos_token_id
    assert weights_digest(made.folder) == weights_digest(base)
    modes = {path.stat().st_mode & 0o777 for path in made.folder.iterdir()}
    assert modes == {made.folder.stat().st_mode & 0o666}  # as the user's umask gives
    assert "license: mit" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("limit", [30_000, 100_000, 10**9])
def test_shards_hold_all_and_no_more_than_their_size(base, store, tmp_path, limit) -> None:
    out = exported(store, "base", tmp_path / "out", max_shard_size=f"{limit // 1000}KB").folder
    files = sorted(out.glob("*.safetensors"))
    whole = load_file(store.fetch("base") / "model.safetensors")
    seen: dict[str, str] = {}
    for file in files:
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= limit or len(tensors) == 1
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole[name])
            assert seen.setdefault(name, file.name) == file.name
    assert seen.keys() == whole.keys()
    index = out / "model.safetensors.index.json"
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
        assert not index.exists()
    else:
        stated = json.loads(index.read_text())
        assert stated["weight_map"] == seen
        assert stated["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


@pytest.mark.parametrize("asked", DTYPES)
def test_another_type_rounds_once_and_is_said(base, store, tmp_path, asked) -> None:
    out = exported(store, "base", tmp_path / "out", dtype=DTYPES[asked]).folder
    before = load_file(store.fetch("base") / "model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, before[name].to(DTYPES[asked]))
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == DTYPES[asked]


def test_a_reward_model_opens_with_our_scores(base, store, tmp_path) -> None:
    model = RewardModel.of(load_decoder(store.fetch("base")), seed=1)
    save_reward_model(model, tmp_path / "judge")
    byte_tokenizer(tmp_path / "judge")
    store.publish("judge", "reward", tmp_path / "judge", parents=["base@1"])
    made = exported(store, "judge", tmp_path / "out", max_shard_size="100KB")
    assert (made.kind, made.dtype) == ("reward", "bf16")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(made.folder)
    assert theirs.num_labels == 1
    saved = load_reward_model(tmp_path / "judge")
    backend = SdpaBackend(1, IDS.shape[1])
    with torch.no_grad():
        hidden = saved(IDS[0], torch.arange(IDS.shape[1]), backend)
        score = float(saved.scores(hidden[-1:], backend)[0])
    assert float(logits(theirs)[0, 0]) == pytest.approx(score, abs=1e-4)


# -- adapters -------------------------------------------------------------------------------------


def test_an_adapter_with_its_base_opens_in_peft_from_anywhere(
    base, store, tmp_path, monkeypatch
) -> None:
    decoder = publish_adapter(store, tmp_path / "adapter")
    made = exported(store, "tuned", tmp_path / "out", with_base=True)
    assert made.base == str(tmp_path / "out" / "base")
    monkeypatch.chdir(tmp_path / "work")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(made.folder)
    assert model.get_base_model().dtype == torch.bfloat16
    assert torch.allclose(logits(model), ours(decoder), atol=2e-4)
    assert not torch.allclose(ours(decoder), ours(load_decoder(base)), atol=1e-2)


def test_an_adapter_that_is_merged_is_one_model_in_its_bases_type(base, store, tmp_path) -> None:
    decoder = publish_adapter(store, tmp_path / "adapter")
    made = exported(store, "tuned", tmp_path / "out", merge=True)
    assert (made.kind, made.dtype) == ("model", "bf16")
    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    assert model.dtype == torch.bfloat16
    assert torch.allclose(logits(model), ours(load_decoder(made.folder)), atol=2e-4)
    wide = exported(store, "tuned", tmp_path / "wide", merge=True, dtype=torch.float32)
    exact = transformers.AutoModelForCausalLM.from_pretrained(wide.folder)
    assert torch.allclose(logits(exact), ours(decoder), atol=2e-4)
    transformers.AutoTokenizer.from_pretrained(wide.folder)
    assert list((tmp_path / "export-work").iterdir()) == []


def test_a_reward_adapter_opens_in_peft_and_merged_in_transformers(base, store, tmp_path) -> None:
    model = publish_adapter(store, tmp_path / "adapter", reward=True)
    backend = SdpaBackend(1, IDS.shape[1])
    with torch.no_grad():
        hidden = model(IDS[0], torch.arange(IDS.shape[1]), backend)
        score = float(model.scores(hidden[-1:], backend)[0])
    alone = exported(store, "tuned", tmp_path / "out", with_base=True)
    opened = peft.AutoPeftModelForSequenceClassification
    exact = opened.from_pretrained(alone.folder, dtype=torch.float32)
    assert float(logits(exact)[0, 0]) == pytest.approx(score, abs=1e-4)
    _padded_rows_score_as_alone(exact, alone.folder / "base")
    theirs = opened.from_pretrained(alone.folder)  # which rounds the head to its base's bf16
    assert float(logits(theirs)[0, 0]) == pytest.approx(score, rel=0.05, abs=5e-3)
    apart = exported(store, "tuned", tmp_path / "apart", base_name=str(base))
    assert "from_pretrained(FOLDER, num_labels=1)" in (apart.folder / "README.md").read_text()
    elsewhere = opened.from_pretrained(apart.folder, num_labels=1, dtype=torch.float32)
    assert float(logits(elsewhere)[0, 0]) == pytest.approx(score, abs=1e-4)
    whole = exported(store, "tuned", tmp_path / "whole", merge=True, dtype=torch.float32)
    assert whole.kind == "reward"
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(whole.folder)
    assert float(logits(merged)[0, 0]) == pytest.approx(score, abs=1e-3)


def _padded_rows_score_as_alone(model, base) -> None:
    """Answers that end by the token that ends a turn, in one batch, padded by the base's tokenizer:
    transformers must read both at that token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = [[5, 60, 7, tokenizer.eos_token_id], [9, 8, 7, 6, 5, 133, tokenizer.eos_token_id]]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits[:, 0].tolist()
        alone = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_base_of_a_hub_is_named_as_there(store, small, tmp_path) -> None:
    source = store.fetch(small)
    extra = {"source": "hf:Org/Model@main", "revision": "c" * 40}
    store.publish("hub", "model", source, extra=extra)
    publish_adapter(store, tmp_path / "adapter", "hub")
    made = exported(store, "tuned", tmp_path / "out")
    config = peft.PeftConfig.from_pretrained(made.folder)
    assert config.base_model_name_or_path == "Org/Model"
    assert config.revision == "c" * 40
    card = (made.folder / "README.md").read_text()
    assert "base_model: Org/Model" in card
    assert "library_name: peft" in card


def test_a_base_that_peft_can_not_find_is_asked_for(store, small, tmp_path) -> None:
    """And each way out that the message names is one."""
    publish_adapter(store, tmp_path / "adapter", "small")
    with pytest.raises(InvalidArgument, match=r"small@1 did not come from a hub") as caught:
        exported(store, "tuned", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ways = {
        "--with-base": {"with_base": True},
        "--base-name": {"base_name": str(store.fetch("small"))},
        "--merge": {"merge": True},
    }
    for number, (way, options) in enumerate(ways.items()):
        assert way in caught.value.message
        made = exported(store, "tuned", tmp_path / str(number), **options)
        if way == "--merge":
            transformers.AutoModelForCausalLM.from_pretrained(made.folder)
        else:
            peft.AutoPeftModelForCausalLM.from_pretrained(made.folder)


def test_an_exported_adapter_comes_back_onto_its_base_alone(store, small, tmp_path) -> None:
    from plinth.models.publish import import_adapter

    publish_adapter(store, tmp_path / "adapter", "small")
    out = exported(store, "tuned", tmp_path / "out", base_name="elsewhere/model").folder
    assert import_adapter(store, out, "back", base="small", workspace=tmp_path / "w").version == 1
    source = byte_tokenizer(random_llama(tmp_path / "twin", layers=1, seed=8))
    import_model(store, str(source), "twin", workspace=tmp_path / "w")
    with pytest.raises(InvalidArgument, match="was trained on 'elsewhere/model'"):
        import_adapter(store, out, "back", base="twin", workspace=tmp_path / "w")


def test_a_base_that_changed_under_its_adapter_is_noticed(store, small, tmp_path) -> None:
    publish_adapter(store, tmp_path / "adapter", "small")
    store.publish(
        "tuned",
        "adapter",
        tmp_path / "adapter",
        parents=["small@1"],
        data_digests={"small@1": "sha256:another"},
        input_digest="sha256:another",
    )
    with pytest.raises(DataLoss, match="its base small@1 has another content now"):
        exported(store, "tuned", tmp_path / "out", merge=True)


# -- llama.cpp ------------------------------------------------------------------------------------


def test_llama_cpps_converter_finds_all_that_it_reads(base, family, store, tmp_path) -> None:
    """By the package that the converter is built upon (gguf 0.19), and its own steps: parameters
    of config.json, a place for each tensor, vocabulary within the table, special ids, merges."""
    out = exported(store, "base", tmp_path / "out", max_shard_size="100KB").folder
    config = json.loads((out / "config.json").read_text())
    wanted = {
        "llama": ("LlamaForCausalLM", "num_hidden_layers", "hidden_size", "rms_norm_eps"),
        "gpt2": ("GPT2LMHeadModel", "n_layer", "n_embd", "layer_norm_epsilon"),
    }[family]
    assert config["architectures"] == [wanted[0]]
    assert all(key in config for key in wanted[1:])
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "gpt2": gguf.MODEL_ARCH.GPT2}[family]
    names = gguf.get_tensor_name_map(arch, config[wanted[1]])
    index = json.loads((out / "model.safetensors.index.json").read_text())
    parts = {name for file in out.glob("model*.safetensors") for name in load_file(file)}
    assert parts == set(index["weight_map"])  # the converter refuses a difference
    for name in parts:
        assert names.get_name(name, try_suffixes=(".weight", ".bias")) is not None, name
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert max(tokenizer.vocab.values()) < config["vocab_size"]
    special = gguf.SpecialVocab(out, load_merges=True, n_vocab=config["vocab_size"])
    assert special.special_token_ids["eos"] == tokenizer.eos_token_id
    assert special.special_token_ids["bos"] == tokenizer.bos_token_id
    assert special.chat_template == tokenizer.chat_template
    gguf.Metadata.load(None, out, None)  # the card, whose header it parses


# -- whole or not at all --------------------------------------------------------------------------


def things(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_folder_that_holds_something_stays(store, small, tmp_path) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists, match="--force"):
        exported(store, "small", out)
    with pytest.raises(FailedPrecondition, match="no model's folder"):
        exported(store, "small", out, force=True)
    (out / "config.json").write_text("{}")  # a model's file beside it makes it no model's folder
    with pytest.raises(FailedPrecondition, match="no model's folder"):
        exported(store, "small", out, force=True)
    assert (out / "deep" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyExists):
        exported(store, "small", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    exported(store, "small", tmp_path / "empty")
    assert list(tmp_path.glob(".*")) == []


def test_force_replaces_an_export_by_another(store, small, tmp_path) -> None:
    publish_adapter(store, tmp_path / "adapter", "small")
    out = exported(store, "tuned", tmp_path / "out", with_base=True).folder
    exported(store, "small", out, force=True)
    assert things(out) == things(exported(store, "small", tmp_path / "fresh").folder)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        KeyboardInterrupt(),
    ],
    ids=["tokenizer", "weights", "user"],
)
def test_what_fails_midway_leaves_what_was_there(
    store, small, tmp_path, monkeypatch, failure
) -> None:
    """In the second of several shards."""
    out = exported(store, "small", tmp_path / "out").folder
    before = things(out)
    calls = []

    def write(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise failure
        return whole(*arguments)

    whole = sharded.write_file
    monkeypatch.setattr(sharded, "write_file", write)
    wanted = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ResourceExhausted
    for folder, force in ((tmp_path / "new", False), (out, True)):
        calls.clear()
        with pytest.raises(wanted):
            exported(store, "small", folder, max_shard_size="30KB", force=force)
    assert not (tmp_path / "new").exists()
    assert things(out) == before
    assert list(tmp_path.glob(".*")) == []


def test_a_place_where_nothing_can_be_written(store, small, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FailedPrecondition, match=r"file/out: could not be made \(.*file"):
        exported(store, "small", tmp_path / "file" / "out")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real", target_is_directory=True)
    made = exported(store, "small", link)
    assert made.folder == tmp_path / "real"
    assert link.is_symlink()
    assert (link / "config.json").is_file()


def test_an_import_onto_a_full_disk_says_so(store, tmp_path, monkeypatch) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "source", layers=1))

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    monkeypatch.setattr("plinth.models.weights.save_file", full)
    with pytest.raises(ResourceExhausted, match="the disk became full"):
        import_model(store, str(source), "m", workspace=tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_room_is_asked_for_before_anything_is_written(store, small, tmp_path, monkeypatch) -> None:
    publish_adapter(store, tmp_path / "adapter", "small")
    asked = {}
    for name, ref, options in [
        ("model", "small", {}),
        ("half", "small", {"dtype": torch.bfloat16}),
        ("both", "tuned", {"with_base": True}),
    ]:
        size = exported(store, ref, tmp_path / name, **options).size
        free = shutil._ntuple_diskusage(10**12, 10**12 - size, size - 1)
        with monkeypatch.context() as patched:
            patched.setattr(whole_folder.shutil, "disk_usage", lambda _, free=free: free)
            with pytest.raises(ResourceExhausted, match=r"needs .* and .* are free") as caught:
                exported(store, ref, tmp_path / "new" / "deep", **options)
        asked[name] = caught.value.message
        assert caught.value.reason == "DISK_FULL"
        assert not (tmp_path / "new").exists()
    # What is asked for is what is written, but for some room for headers.
    for name, text in asked.items():
        needed = float(text.partition("needs ")[2].split()[0])
        written = sum(len(content) for content in things(tmp_path / name).values())
        assert 0 <= needed * 1e6 - written < 1.2e6, name


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "options", "says"),
    [
        (
            "words",
            {},
            "words@1 is a tokenizer; of the kinds model, reward, adapter one can",
        ),
        ("small", {"merge": True}, "--merge is for an adapter; small@1 is a model"),
        ("small", {"with_base": True}, "--with-base is for an adapter"),
        ("small", {"base_name": "x"}, "--base-name is for an adapter"),
        ("tuned", {"merge": True, "with_base": True}, "--merge and --with-base: choose one"),
        ("small", {"max_shard_size": "big"}, "max_shard_size is 'big', must be a size such as 5GB"),
    ],
)
def test_what_does_not_fit_is_named(store, small, tmp_path, ref, options, says) -> None:
    publish_adapter(store, tmp_path / "adapter", "small")
    store.publish("words", "tokenizer", store.fetch("small"))
    with pytest.raises(InvalidArgument) as caught:
        exported(store, ref, tmp_path / "out", **options)
    assert says in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_number_that_fp16_does_not_hold(store, small, tmp_path) -> None:
    decoder = load_decoder(store.fetch("small"))
    with torch.no_grad():
        decoder.model.norm.weight[0] = 1e6
    save_decoder(decoder, tmp_path / "big")
    store.publish("big", "model", byte_tokenizer(tmp_path / "big"))
    with pytest.raises(InvalidArgument, match=r"'model\.norm\.weight' holds .* beyond 65504"):
        exported(store, "big", tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    exported(store, "big", tmp_path / "out", dtype=torch.bfloat16)  # as the message says
