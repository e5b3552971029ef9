"""What a base says of special ids and of generation stays in all that is made of it.

The truth is transformers: what it reads of the made folder is what it reads of the base, but for
ends of answers that were learned since. And a reward model scores the same there as here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

import policy_job
import trainings
from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.models.adapters.lora import LoraConfig, attach
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.importer import import_source
from plinth.models.inherited_settings import pad_apart
from plinth.models.publish import import_adapter, import_model
from plinth.models.reward import load_reward_model
from plinth.models.weights import load_decoder
from plinth.reward.forward import ScoringModel
from plinth.shared.errors import InvalidArgument
from plinth.shared.store import ArtifactStore
from plinth.trainer.data.corpus import write_corpus
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import set_up, write_model
from plinth.trainer.policy.run import optimise_policy

Json = dict[str, Any]
VOCABULARY, END, OTHER = 320, 2, 300  # END is the template's <|im_end|>
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SETTINGS = {
    "temperature": st.sampled_from([0.3, 0.7]),
    "top_p": st.sampled_from([0.8, 0.95]),
    "top_k": st.sampled_from([10, 40]),
    "repetition_penalty": st.sampled_from([1.05, 1.2]),
    "do_sample": st.just(True),
    "max_new_tokens": st.sampled_from([64, 512]),
    "suppress_tokens": st.just([5, 9]),
}
one_id = st.integers(0, VOCABULARY - 1)
eos = one_id | st.lists(one_id, min_size=1, max_size=3, unique=True) | st.none()
ids = st.fixed_dictionaries(
    {"bos_token_id": one_id | st.none(), "eos_token_id": eos, "pad_token_id": one_id | st.none()}
)
says = st.fixed_dictionaries({}, optional=SETTINGS)
LLAMA3 = {"bos_token_id": 0, "eos_token_id": [OTHER, 301, END], "pad_token_id": 302}


@cache
def model() -> Path:
    folder = Path(mkdtemp(prefix="plinth-test-base-"))
    return byte_tokenizer(random_llama(folder, layers=1, hidden=16, intermediate=16, heads=2))


def base(folder: Path, config: Json, generation: Json | None) -> Path:
    """The model, saying this in its files; `generation` None: it has no such file."""
    copytree(model(), folder)
    said = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in said.items() if key not in IDS}
    (folder / "config.json").write_text(json.dumps(said | config))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def read(folder: Path) -> tuple[Json, Json]:
    """(ids by config.json, generation) as transformers has them."""
    config = AutoConfig.from_pretrained(folder)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:  # as transformers' models do
        generation = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )
    told = {k: v for k, v in generation.to_dict().items() if v is not None and k[0] != "_"}
    for key in ("transformers_version", "use_cache", "output_attentions", "output_hidden_states"):
        told.pop(key, None)  # of a config.json; no settings of generation
    for key in IDS:  # transformers' own fallback where a generation's file says nothing
        told.setdefault(key, getattr(config, key))
    return {key: getattr(config, key) for key in IDS}, told


def with_end(said: Any, learned: int, known: bool) -> Any:
    """Ends of answers once `learned` is one of them."""
    if known:
        return said
    values = said if isinstance(said, list) else [] if said is None else [said]
    return [*values, learned] if values else learned


@cache
def dataset(kind: str) -> Path:
    """Of the base's own tokenizer, whose template ends a turn by END."""
    folder = Path(mkdtemp(prefix="plinth-test-data-")) / kind
    documents = {"sft": trainings.chats, "pairs": trainings.pairs}[kind](60)
    write_corpus(iter(documents), folder / "corpus", source="test", validation_fraction=0.1)
    tokenize_corpus(
        folder / "corpus",
        model(),
        folder / "dataset",
        tokenizer_ref="t@1",
        tokenizer_digest="sha256:0",
        **trainings.chatml(model()),
    )
    return folder / "dataset"


def written(start: Path, objective: str, folder: Path) -> Path:
    """What a job of this objective, begun from `start`, saves."""
    data = dataset("sft" if objective == "sft" else "pairs")
    config = trainings.config(
        data, objective=objective, init_from=str(start), model=None, sequence_length=128
    )
    job = JobFolder(trainings.job(folder, config))
    run = set_up(config, job, Group())
    write_model(job, config, run._write)
    return job.model


@settings(max_examples=15)
@given(ids, st.none() | st.tuples(ids, says), says)
@example(LLAMA3 | {"eos_token_id": OTHER}, (LLAMA3, {"temperature": 0.6, "top_p": 0.9}), {})
@example({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}, None, {"temperature": 0.7})
def test_an_import_and_a_tuned_model_say_what_the_base_said(
    config: Json, generation: tuple[Json, Json] | None, legacy: Json
) -> None:
    own = None if generation is None else {**generation[0], **generation[1]}
    said = config | (legacy if own is None else {})
    with TemporaryDirectory(prefix="plinth-test-") as name:
        source = base(Path(name) / "source", said, own)
        wanted_ids, wanted = read(source)
        imported = import_source(str(source), Path(name) / "imported").folder
        assert read(imported) == (wanted_ids, wanted)
        known = [*listed(wanted_ids["eos_token_id"]), *listed(wanted["eos_token_id"])]
        end = {"learned": END, "known": END in known}
        tuned = read(written(imported, "sft", Path(name) / "job"))
        for before, after in zip((wanted_ids, wanted), tuned, strict=True):
            ends = with_end(before["eos_token_id"], **end)
            assert after == before | {"eos_token_id": ends}


def listed(said: Any) -> list[int]:
    return said if isinstance(said, list) else [said]


def test_an_id_that_names_no_token_is_left_out(tmp_path: Path) -> None:
    said = {"bos_token_id": 0, "eos_token_id": [END, VOCABULARY], "pad_token_id": -1}
    source = base(tmp_path / "source", said, said)
    config, generation = read(import_source(str(source), tmp_path / "made").folder)
    assert config == {"bos_token_id": 0, "eos_token_id": [END], "pad_token_id": None}
    assert generation["eos_token_id"] == [END]


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "lora"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "reward"])
def test_a_job_saves_what_its_base_said(objective: str, lora: Json | None, tmp_path: Path) -> None:
    says = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True}
    source = base(tmp_path / "source", LLAMA3 | {"eos_token_id": OTHER}, LLAMA3 | says)
    start = import_source(str(source), tmp_path / "start").folder
    config = trainings.config(
        dataset("sft" if objective == "sft" else "pairs"),
        objective=objective,
        init_from=str(start),
        model=None,
        sequence_length=128,
        steps=2,
        batch_size=2,
        micro_batch_size=2,
        lora=lora,
    )
    job = JobFolder(trainings.job(tmp_path / "job", config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    ids_, generation = read(job.model)
    assert ids_ == LLAMA3 | {"eos_token_id": OTHER}
    if objective == "reward":
        assert not (job.model / "generation_config.json").exists()
    else:
        assert generation == read(source)[1]
    theirs, ours = (AutoTokenizer.from_pretrained(place) for place in (source, job.model))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


def test_a_policy_and_a_merged_adapter_say_what_their_base_said(
    store: ArtifactStore, tmp_path: Path
) -> None:
    source = base(tmp_path / "source", LLAMA3, LLAMA3 | {"temperature": 0.6, "do_sample": True})
    start = store.fetch(import_model(store, str(source), "base", workspace=tmp_path / "work"))
    judge = written(start, "reward", tmp_path / "judge")
    config = policy_job.planned(
        dataset("pairs"),
        start,
        judge,
        batch_size=4,
        steps=1,
        policy={"samples": 2, "max_new_tokens": 4},
    )
    job = JobFolder(trainings.job(tmp_path / "policy", config))
    assert optimise_policy(config, job, Group()) == "succeeded", job.outcome()
    assert read(job.model) == read(source)
    decoder = load_decoder(start)
    lora = LoraConfig(rank=2)
    attach(decoder, lora, 0)
    save_adapter(decoder, lora, tmp_path / "adapter", "base@1")
    merged = import_adapter(
        store, tmp_path / "adapter", "merged", base="base", workspace=tmp_path / "work"
    )
    assert read(store.fetch(merged)) == read(source)


# -- tokenizers ----------------------------------------------------------------------------------

MAP = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|im_start|>", "lstrip": False}}
DECODER = {"1": {"content": "<|im_start|>", "special": True}}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map.json": MAP},
        {"special_tokens_map.json": MAP, "tokenizer_config.json": {"eos_token": "<|im_end|>"}},
        {
            "special_tokens_map.json": MAP,
            "tokenizer_config.json": {
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": DECODER,
                "extra_special_tokens": ["<|im_start|>"],
            },
        },
        {"tokenizer_config.json": {"chat_template": "old"}, "chat_template.jinja": "new"},
        {
            "tokenizer_config.json": {"chat_template": "old"},
            "chat_template.jinja": "new",
            "additional_chat_templates/tool_use.jinja": "tools",
        },
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "default", "template": "a"},
                    {"name": "rag", "template": "b"},
                ]
            }
        },
    ],
)
def test_a_tokenizer_says_what_transformers_reads_of_its_files(
    files: dict[str, Any], tmp_path: Path
) -> None:
    source = copytree(model(), tmp_path / "source")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (source / name).unlink(missing_ok=True)
    for name, content in files.items():
        (source / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (source / name).write_text(text)
    made = import_source(str(source), tmp_path / "made").folder
    theirs, ours = (AutoTokenizer.from_pretrained(place) for place in (source, made))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.chat_template == theirs.chat_template
    assert len(ours) == len(theirs)


# -- reward models -------------------------------------------------------------------------------


def scores(folder: Path, answers: list[list[int]], side: str) -> list[float]:
    """By transformers, in one batch, padded as the folder's tokenizer pads."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    batch = tokenizer.pad({"input_ids": answers}, return_tensors="pt")
    with torch.no_grad():
        logits: list[float] = theirs(**batch).logits[:, 0].tolist()
    return logits


ANSWERS = [[1, 40, 50, 60, END], [1, 41, END], [1, 42, 52, 62, 72, 82, END]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad", [None, END, OTHER], ids=["no pad", "pad is eos", "pad of its own"])
def test_a_tuned_reward_model_scores_the_same_in_transformers(
    pad: int | None, side: str, tmp_path: Path
) -> None:
    """Padding with the token that ends answers would have it read one token early."""
    says = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": pad}
    source = base(tmp_path / "source", says, says)
    content = {END: "<|im_end|>", None: None, OTHER: None}[pad]
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": content}))
    start = import_source(str(source), tmp_path / "start").folder
    made = written(start, "reward", tmp_path / "job")
    if pad == OTHER:  # a token without a name: the tokenizer can't pad with it
        found = json.loads((made / "config.json").read_text())["pad_token_id"]
        assert found == OTHER
        return
    wanted = ScoringModel(made, "cpu").scores([tuple(one) for one in ANSWERS])
    assert scores(made, ANSWERS, side) == pytest.approx(wanted, abs=1e-5)


def test_the_pages_code_gives_the_reward_stages_scores(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "apply_chat" in block
    ]
    source = base(tmp_path / "source", {"eos_token_id": END}, {"eos_token_id": END})
    made = written(source, "reward", tmp_path / "job")
    said = ["Yes.", "No, and I shall say why.", "Perhaps so"]
    chats = [[("user", "Is it?"), ("assistant", answer)] for answer in said]
    given = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    names: Json = {"chats": given}
    exec(code.replace('"judge"', repr(str(made))), names)
    renderer = trainings.chatml(made)["render"]
    wanted = [tuple(ids) for ids, _ in renderer([tuple(chat) for chat in chats])]
    assert names["scores"] == pytest.approx(ScoringModel(made, "cpu").scores(wanted), abs=1e-5)


def test_where_every_token_ends_answers_there_is_no_padding(tmp_path: Path) -> None:
    """GPT-2 has one special token for all: sequences are then read one by one, and rightly."""
    source = base(tmp_path / "source", {"eos_token_id": 0, "pad_token_id": 0}, None)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    (source / "tokenizer_config.json").write_text(json.dumps(names))
    pad_apart(source)
    assert json.loads((source / "config.json").read_text())["pad_token_id"] is None


def test_padding_is_a_token_of_the_model(tmp_path: Path) -> None:
    """A tokenizer may have more tokens than its model: an embedding of such a one there is not."""
    source = base(tmp_path / "source", {"eos_token_id": END, "pad_token_id": END}, None)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][0], "id": VOCABULARY, "content": "<|pad|>"}
    tokenizer["added_tokens"].append(added)
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "bos_token": "<|im_start|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(names))
    pad_apart(source)
    assert json.loads((source / "config.json").read_text())["pad_token_id"] == 1
    made = json.loads((source / "tokenizer_config.json").read_text())
    assert made["pad_token"] == "<|im_start|>"


def classifier(
    folder: Path, family: str, labels: int = 1, dtype: torch.dtype = torch.float32
) -> Path:
    """As transformers saves one, made of a language model."""
    make: Callable[..., Path] = random_llama if family == "llama" else random_gpt2
    body = make(folder.with_name(f"{folder.name}-body"), layers=2, tied=family == "gpt2")
    theirs = AutoModelForSequenceClassification.from_pretrained(body, num_labels=labels)
    theirs.config.pad_token_id = 0
    theirs.to(dtype).save_pretrained(folder, max_shard_size="50KB")
    byte_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    padded = tokenizer | {"pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(padded))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reward_model_of_transformers_is_imported_as_one(
    family: str, dtype: torch.dtype, store: ArtifactStore, tmp_path: Path
) -> None:
    source = classifier(tmp_path / "source", family, dtype=dtype)
    record = import_model(store, str(source), "judge", workspace=tmp_path / "work")
    assert record.kind == "reward"
    made = store.fetch(record)
    wanted = scores(source, ANSWERS, "right")
    found = ScoringModel(made, "cpu").scores([tuple(one) for one in ANSWERS])
    assert found == pytest.approx(wanted, abs=1e-4)
    assert scores(made, ANSWERS, "right") == pytest.approx(wanted, abs=1e-5)
    assert load_reward_model(source).config == load_reward_model(made).config


def test_a_classification_with_more_labels_is_refused(tmp_path: Path) -> None:
    source = classifier(tmp_path / "source", "llama", labels=3)
    with pytest.raises(InvalidArgument, match=r"score.weight' is \[3, 64\].*one label"):
        import_source(str(source), tmp_path / "made")
