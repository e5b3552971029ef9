"""What an error of the trainer advises is done here, to the input that the error came from."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trainings
from job_specs import model_spec, prepare_spec, train_spec
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.weights import save_decoder
from plinth.shared.errors import DataLoss, FailedPrecondition, InvalidArgument, PlinthError
from plinth.shared.objectives import OBJECTIVES
from plinth.shared.prompt_set import read_prompts
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.data.builtin import stdlib
from plinth.trainer.data.corpus import write_corpus
from plinth.trainer.data.documents import corpus_files, read_file
from plinth.trainer.data.selected import PAIRINGS, Scored, pair_documents
from plinth.trainer.data.shards import Split
from plinth.trainer.data.tokenize import load_tokenizer, tokenize_corpus
from plinth.trainer.loop import Group, TrainConfig, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import make_objective, set_up
from plinth.trainer.planning import plan_train
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb

SETTINGS = TrainerSettings(threads=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.dataset(tmp_path_factory.mktemp("plain"), trainings.texts(12))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.dataset(tmp_path_factory.mktemp("chats"), trainings.chats(20))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.dataset(tmp_path_factory.mktemp("pairs"), trainings.pairs(20))


def told(act: Callable[[], object]) -> str:
    with pytest.raises(PlinthError) as caught:
        act()
    return caught.value.message


def most(message: str) -> dict[str, int]:
    """Field → value, of each "make FIELD at most VALUE"."""
    return {name: int(n) for name, n in re.findall(r"make (\w+) at most (\d+)", message)}


# -- what a request says ------------------------------------------------------------------------

SHAPE = model_spec(family="llama", layers=1, hidden=16, heads=2, context=64)
LORA = {"lora": pb.LoraSpec(rank=2), "model": None, "init_from": "m@1"}
NAMES = {"output_name": "n" * 64}


def request(kind: str = "train", output_name: str = "m", **changes: Any) -> pb.JobSpec:
    base = {
        "objective": "clm",
        "dataset": "d@1",
        "model": SHAPE,
        "sequence_length": 32,
        "batch_size": 8,
        "steps": 10,
    }
    if kind != "train":
        return pb.JobSpec(output_name=output_name)
    given = {k: v for k, v in {**base, **changes}.items() if v is not None}
    return pb.JobSpec(output_name=output_name, train=train_spec(**given))


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ({"kind": ""}, "needs 'prepare', 'train', 'compare' or 'model_import'", {}),
        ({"dataset": ""}, "name a dataset artifact", {"dataset": "d@1"}),
        ({"model": None}, "give either init_from or model", {"init_from": "m@1"}),
        ({"model": None}, "give either init_from or model", {"model": SHAPE}),
        ({**LORA, "init_from": None, "model": SHAPE}, "give init_from instead of model", LORA),
        ({**LORA, **NAMES}, "use at most 56 characters with lora", {"output_name": "n" * 56}),
        (NAMES | {"output_name": "n" * 65}, "use 1 to 64 of a-z 0-9 . _ -", NAMES),
        ({"output_name": "No"}, "starting with a letter or a digit", {"output_name": "0._-"}),
        ({"objective": "magic"}, "objective is one of clm, sft", {"objective": "clm"}),
        ({"max_seconds": 5.0}, "give one of the two", {"max_seconds": None}),
        ({"max_seconds": 5.0}, "give one of the two", {"steps": None}),
        (
            {"schedule": "cosine", "decay_fraction": 0.2},
            "it is for schedule 'wsd'",
            {"schedule": "wsd"},
        ),
    ],
)
def test_requests(wrong: dict[str, Any], advice: str, right: dict[str, Any]) -> None:
    assert advice in told(lambda: check_spec(request(**wrong)))
    check_spec(request(**{**wrong, "kind": "train", **right}))


@pytest.mark.parametrize(
    ("data", "objective"), [("plain", "sft"), ("chats", "dpo"), ("pairs", "clm")]
)
def test_an_objective_for_other_data(
    data: str, objective: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset = request.getfixturevalue(data)
    vocabulary = Split(dataset, "train").info.vocab_size
    save_decoder(Decoder(ModelConfig(**{**trainings.MODEL, "vocab_size": vocabulary})), tmp_path)

    def planned(name: str) -> None:
        spec = train_spec(objective=name, dataset="d@1", init_from="m@1", batch_size=4, steps=2)
        if "sequence_length" in OBJECTIVES[name].takes:
            spec.sequence_length = 8
        else:  # a policy
            spec.reward = "r@1"
        plan_train(spec, dataset, tmp_path, SETTINGS)

    fits = told(lambda: planned(objective)).partition(", for ")[2]
    assert re.findall(r"'(\w+)'", fits)
    for name in re.findall(r"'(\w+)'", fits):
        planned(name)


def test_more_than_the_dataset_holds_and_the_context(plain: Path) -> None:
    def planned(**changes: Any) -> TrainConfig:
        return plan_train(request(**changes).train, plain, None, SETTINGS)

    for wrong in ({"batch_size": 2000}, {"batch_size": 600, "sequence_length": 64}):
        ways = most(told(lambda wrong=wrong: planned(**wrong)))
        assert set(ways) >= {"batch_size"}
        for name, value in ways.items():
            planned(**{**wrong, name: value})
            told(lambda wrong=wrong, more={name: value + 1}: planned(**{**wrong, **more}))
    message = told(lambda: planned(sequence_length=65))
    (context,) = re.findall(r"longer than the model's context of (\d+)", message)
    planned(sequence_length=int(context), batch_size=2)
    message = told(lambda: planned(model=model_spec(layers=1, hidden=16, heads=2)))
    families = re.findall(r"MODEL_FAMILY_(\w+)", message.partition("use ")[2])
    assert families
    for family in families:
        shape = model_spec(family=family.lower(), layers=1, hidden=16, heads=2, context=64)
        planned(model=shape)


# -- what the loop finds ------------------------------------------------------------------------


def opened(folder: Path, config: TrainConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    set_up(config, JobFolder(folder), Group())


def test_too_little_for_one_batch(plain: Path, chats: Path, pairs: Path, tmp_path: Path) -> None:
    for number, (dataset, changes, ways) in enumerate(
        [
            (plain, {"batch_size": 64}, {"batch_size", "sequence_length"}),
            (plain, {"batch_size": 10_000}, {"batch_size"}),
            (plain, {"batch_size": 2, "sequence_length": 1000}, {"sequence_length"}),
            (chats, {"objective": "sft", "batch_size": 64}, {"batch_size"}),
            (pairs, {"objective": "reward", "batch_size": 64}, {"batch_size"}),
        ]
    ):
        shape = {**trainings.MODEL, "context": 1024}
        config = trainings.config(dataset, **{"sequence_length": 32, "model": shape, **changes})
        found = most(told(lambda config=config, n=number: opened(tmp_path / f"{n}", config)))
        assert set(found) == ways
        for name, value in found.items():
            opened(tmp_path / f"{number}-{name}", replace(config, **{name: value}))


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_pairs_that_are_all_too_long(pairs: Path, objective: str) -> None:
    def made(length: int) -> None:
        config = trainings.config(pairs, objective=objective, sequence_length=length)
        make_objective(config, Split(pairs, "train"), Split(pairs, "validation"))

    message = told(lambda: made(3))
    needed = re.search(r"the shortest needs (\d+): raise sequence_length", message)
    assert needed is not None
    # Of each side the shortest: what is held out may need more than what is learned from.
    while needed is not None:
        length = int(needed[1])
        try:
            made(length)
            break
        except InvalidArgument as more:
            needed = re.search(r"the shortest needs (\d+)", more.message)
            assert needed is not None
            assert int(needed[1]) > length


def test_a_job_that_was_made_otherwise_is_submitted_under_a_new_id(
    plain: Path, tmp_path: Path
) -> None:
    config = trainings.config(plain, steps=2)
    job = JobFolder(trainings.job(tmp_path / "old", config))
    assert train(config, job, Group()) == "succeeded"
    other = replace(config, seed=9)
    assert checkpoints(job.checkpoints)
    assert "under a new id" in told(lambda: opened(job.path, other))
    opened(tmp_path / "new", other)


def test_a_loss_that_is_no_number(plain: Path, tmp_path: Path) -> None:
    config = trainings.config(plain, learning_rate=1e12, clip_norm=0.0, steps=8)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "failed"
    error = job.error()
    assert isinstance(error, FailedPrecondition)
    assert "Lower the learning rate" in error.message
    lower = replace(config, learning_rate=1e-3)
    job = JobFolder(trainings.job(tmp_path / "b", lower))
    assert train(lower, job, Group()) == "succeeded", job.outcome()


# -- what data has to be ------------------------------------------------------------------------


def texts_of(path: Path) -> list[str | None]:
    return [document.text for document in read_file(path)]


@pytest.mark.parametrize(
    ("name", "encoding", "read"),
    [
        ("a.txt", "latin-1", texts_of),
        ("a.txt", "utf-16", texts_of),
        ("a.jsonl", "latin-1", texts_of),
        ("prompts", "latin-1", lambda path: [prompt.text for prompt in read_prompts(path)]),
    ],
)
def test_what_is_not_utf8_is_converted(
    name: str, encoding: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    text = {"a.txt": "café", "a.jsonl": '{"text": "café"}', "prompts": '{"prompt": "café"}'}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    message = told(lambda: read(tmp_path / name))
    command = re.search(r"convert it, .*? by: (iconv .*? FILE > NEW)", message)
    assert command is not None, message
    (tmp_path / "new").mkdir()
    line = command[1].replace("FILE", name).replace("NEW", f"new/{name}")
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert read(tmp_path / "new" / name) == ["café"]


def test_a_dataset_of_an_earlier_format_is_prepared_again(chats: Path, tmp_path: Path) -> None:
    path = chats / "dataset.json"
    now = path.read_text()
    path.write_text(json.dumps({**json.loads(now), "format": 1}))
    try:
        assert "prepare the dataset again" in told(lambda: Split(chats, "train"))
    finally:
        path.write_text(now)
    assert Split(trainings.dataset(tmp_path, trainings.chats(20)), "train").documents


def test_a_dataset_that_is_damaged_is_not_prepared_again(plain: Path, tmp_path: Path) -> None:
    """From the same inputs a run takes the damaged one again; `tests/unit/cluster` restores it."""
    path = next(plain.glob("train-*.bin"))
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    try:
        with pytest.raises(DataLoss, match="restore PLACE --only store --merge-store"):
            Split(plain, "train")
    finally:
        path.write_bytes(whole)


def test_chats_need_a_template_and_texts_an_end(tmp_path: Path) -> None:
    write_corpus(iter(trainings.chats(20)), tmp_path / "c", source="test", validation_fraction=0.1)
    tokens = trainings.tokenizer(tmp_path / "t")

    def made(**how: Any) -> None:
        tokenize_corpus(
            tmp_path / "c", tokens, tmp_path / "d", tokenizer_ref="t", tokenizer_digest="", **how
        )

    assert "need a tokenizer with a chat template" in told(made)
    made(**trainings.chatml(tokens))
    path, config = tokens / "tokenizer.json", tokens / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    (said := json.loads(config.read_text())).pop("eos_token")
    config.write_text(json.dumps(said))
    assert "has neither <|endoftext|> nor an eos_token" in told(lambda: load_tokenizer(tokens))
    config.write_text(json.dumps({**said, "eos_token": "<|im_end|>"}))
    load_tokenizer(tokens)


def test_without_the_standard_librarys_sources_a_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert "give corpus_dir instead" in told(lambda: next(stdlib()))
    (tmp_path / "a.txt").write_text("text")
    spec = prepare_spec(corpus_dir=str(tmp_path))
    check_spec(pb.JobSpec(output_name="c", prepare=spec))
    assert corpus_files(Path(spec.corpus_dir))[0]


def test_selecting_from_samples() -> None:
    def made(logprob: float | None = None, **how: str) -> int:
        prompt = (("user", "?"),)
        samples = [Scored(prompt, answer, len(answer), logprob) for answer in ("a", "bb", "c")]
        return len(list(pair_documents(samples, **how)))

    message = told(lambda: made(pairing="best"))
    assert re.findall(r"'(\w+)'", message.partition("use ")[2]) == list(PAIRINGS)
    assert all(made(pairing=pairing) for pairing in PAIRINGS)
    assert "sample anew, or use 'first'" in told(lambda: made(ties="likely"))
    assert made(ties="first")
    assert made(ties="likely", logprob=-1.0)  # as samples have it now
