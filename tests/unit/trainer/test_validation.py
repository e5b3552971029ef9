import pytest

import trainings
from job_specs import model_spec, prepare_spec, train_spec
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.planning import plan_train
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb

SETTINGS = TrainerSettings()


@pytest.fixture(scope="module")
def data(datasets):
    return datasets("text")


def spec(**changes):
    shape = {"family": "llama", "layers": 2, "hidden": 96, "heads": 4, "context": 64}
    base = {
        "objective": "clm",
        "dataset": "d",
        "model": model_spec(**shape),
        "sequence_length": 32,
        "batch_size": 8,
        "steps": 10,
        "learning_rate": 1e-3,
    }
    return train_spec(**{k: v for k, v in {**base, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"objective": None}, "objective", "OBJECTIVE_CLM, OBJECTIVE_SFT"),
        ({"dataset": ""}, "dataset", "name a dataset"),
        ({"model": None}, "model", "either init_from or model"),
        ({"model": None, "init_from": ""}, "model", "either init_from or model"),
        ({"sequence_length": 0}, "sequence_length", "is 0, must be 2 to"),
        ({"batch_size": 0}, "batch_size", "is 0, must be 1"),
        ({"steps": 0}, "max_duration", "is 0.0, must be 1"),
        ({"steps": 0, "max_seconds": 1e9}, "max_duration", "must be 1 to 7.776e"),
        ({"learning_rate": -1.0}, "learning_rate", "must be"),
        ({"learning_rate": float("inf")}, "learning_rate", "is inf"),
        ({"warmup_fraction": 1.5}, "warmup_fraction", "must be 0 to 1"),
        (
            {"warmup_fraction": 0.5, "decay_fraction": 0.75},
            "decay_fraction",
            "1.25 of the steps together, at most 1 fits",
        ),
        ({"decay_fraction": 1.0}, "decay_fraction", "warmup_fraction 0.02 and decay_fraction 1"),
        ({"workers": 3}, "batch_size", "8 does not divide evenly by 3 workers"),
        ({"workers": 2, "micro_batch_size": 3}, "micro_batch_size", "share of 4"),
    ],
)
def test_each_mistake_names_its_field(changes, field, says):
    with pytest.raises(InvalidArgument, match=says) as caught:
        check_spec(pb.JobSpec(output_name="m", train=spec(**changes)))
    assert caught.value.field == f"spec.train.{field}"


@pytest.mark.parametrize("name", ["", "Big", "a/b", "-x", "x" * 65])
def test_names_of_artifacts(name):
    with pytest.raises(InvalidArgument, match="output_name"):
        check_spec(pb.JobSpec(output_name=name, train=spec()))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        ({}, "give one of"),
        ({"builtin": "wikipedia"}, "there is: stdlib"),
        ({"corpus": "c"}, "needs a tokenizer"),
        ({"builtin": "stdlib", "validation_fraction": 0.9}, "0 to 0.5"),
    ],
)
def test_preparing(prepare, says):
    with pytest.raises(InvalidArgument, match=says):
        check_spec(pb.JobSpec(output_name="m", prepare=prepare_spec(**prepare)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "sft"}, "prepared from plain text"),
        ({"sequence_length": 65}, "longer than the model's context of 64"),
        ({"batch_size": 1024}, "needs 32769 and"),
        ({"model": model_spec(hidden=8)}, "MODEL_FAMILY_LLAMA"),
        ({"model": model_spec(family="llama", hidden=9, heads=2)}, "does not divide"),
        ({"model": model_spec(family="llama", hidden=8, heads=2)}, "layers is 0"),
    ],
)
def test_what_does_not_fit_the_data(data, changes, says):
    with pytest.raises(InvalidArgument, match=says):
        plan_train(spec(**changes), data, None, SETTINGS)


def test_defaults(data):
    config = plan_train(spec(), data, None, SETTINGS)
    assert config.model["intermediate"] == 256  # 8/3 × 96
    assert (config.schedule, config.precision, config.workers) == ("wsd", "auto", 1)
    assert (config.warmup_fraction, config.decay_fraction, config.clip_norm) == (0.02, 0.4, 1.0)
    assert config.micro_batch_size == 8
    assert plan_train(spec(clip_norm=0.0), data, None, SETTINGS).clip_norm == 0.0
    big = plan_train(spec(batch_size=512, sequence_length=16), data, None, SETTINGS)
    assert big.micro_batch_size * 16 <= 4096


def test_a_model_only_goes_on_with_its_own_tokenizer(data, tmp_path):
    config = trainings.config(data, steps=1)
    job = JobFolder(trainings.job(tmp_path / "job", config))
    assert train(config, job, Group()) == "succeeded"
    request = spec(model=None, init_from="m")
    assert plan_train(request, data, job.model, SETTINGS).init_from == str(job.model)
    other = trainings.tokenizer(tmp_path / "other", 280)
    (job.model / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(InvalidArgument, match="not the model's tokenizer"):
        plan_train(request, data, job.model, SETTINGS)
