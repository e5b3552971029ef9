"""An adapter goes on its own base: another of the same shape is refused, with both names."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from typer.testing import CliRunner

from checkpoints import byte_tokenizer, random_llama
from plinth.cli.models import app
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.base import NamedBase, check_base
from plinth.models.adapters.lora import LoraConfig, adapters, attach
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.export import ExportOptions, export_artifact
from plinth.models.publish import import_adapter, import_model
from plinth.models.reward import RewardModel, load_reward_model
from plinth.models.weights import load_decoder
from plinth.shared.errors import InvalidArgument
from plinth.shared.store import ArtifactStore

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def bases(store, tmp_path):
    """Two models of one shape, on the store as "mine" and "other"; each has an output map."""
    made = {}
    for name, seed in (("mine", 0), ("other", 9)):
        folder = byte_tokenizer(random_llama(tmp_path / name, layers=1, seed=seed, tied=False))
        import_model(store, str(folder), name, workspace=tmp_path / "work")
        made[name] = folder
    return made


def by_peft(base, out, **options):
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=4, **options),
    )
    model.save_pretrained(out)
    return out


def by_us(base, out, *, reward=False):
    decoder = load_decoder(base)
    if reward:
        decoder = RewardModel.of(decoder, seed=2)
    attach(decoder, LoraConfig(rank=4), 1)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.fill_(0.01)
    save_adapter(decoder, LoraConfig(rank=4), out, "mine@1")
    return out


def merged(store, adapter, base, tmp_path, **options):
    return import_adapter(store, adapter, "tuned", base=base, workspace=tmp_path / "w", **options)


def rewards_by_us(base, out):
    return by_us(base, out, reward=True)


@pytest.mark.parametrize("make", [by_us, rewards_by_us, by_peft])
def test_another_base_of_the_same_shape_is_refused_with_both_names(
    store, bases, tmp_path, make
) -> None:
    adapter = make(bases["mine"], tmp_path / "adapter")
    with pytest.raises(InvalidArgument) as caught:
        merged(store, adapter, "other", tmp_path)
    assert caught.value.reason == "OTHER_BASE"
    named = str(bases["mine"]) if make is by_peft else "mine@1"
    assert f"was trained on '{named}'" in caught.value.message
    assert "not on other@1 (imported from other)" in caught.value.message
    assert merged(store, adapter, "mine", tmp_path).parents == ("mine@1",)


def test_its_base_is_known_by_its_weights_under_any_name(store, bases, tmp_path) -> None:
    """The same weights in another type's file, too: bf16 as fp32 are the same numbers."""
    adapter = by_us(bases["mine"], tmp_path / "adapter")
    shutil.copytree(bases["mine"], tmp_path / "renamed")
    import_model(store, str(tmp_path / "renamed"), "copy", workspace=tmp_path / "work")
    assert merged(store, adapter, "copy", tmp_path).parents == ("copy@1",)


def test_where_the_named_folder_is_gone_its_last_part_decides(store, bases, tmp_path) -> None:
    adapter = by_peft(bases["mine"], tmp_path / "adapter")
    shutil.rmtree(bases["mine"])
    with pytest.raises(InvalidArgument, match=r"and not on other@1"):
        merged(store, adapter, "other", tmp_path)
    assert merged(store, adapter, "mine", tmp_path).kind == "model"


HUB = {"source": "hf:Org/Model-1B@main", "revision": "a" * 40}


@pytest.mark.parametrize(
    ("named", "extra", "same"),
    [
        (NamedBase("Org/Model-1B"), HUB, True),
        (NamedBase("org/model-1b"), HUB, True),
        (NamedBase("Org/Model-1B", revision="a" * 40), HUB, True),
        (NamedBase("Org/Model-1B", revision="b" * 40), HUB, False),
        (NamedBase("Org/Model-1B", revision="main"), HUB, True),
        (NamedBase("Other/Model-1B"), HUB, False),
        (NamedBase("Org/Model-2B"), HUB, False),
        (NamedBase("/gone/models/Model-1B"), HUB, True),
        (NamedBase("/gone/models/Model-2B"), HUB, False),
        (NamedBase("Org/Model-1B"), {"source": "Model-1B"}, True),
        (NamedBase("Org/Model-2B"), {"source": "Model-1B"}, False),
        (NamedBase("m@1"), {}, True),
        (NamedBase("m@2"), {}, False),
        (NamedBase("m"), {}, True),
    ],
)
def test_names(store, bases, named, extra, same) -> None:
    decoder = load_decoder(bases["mine"])
    record = store.publish("m", "model", bases["mine"], extra=extra)
    if same:
        assert check_base(named, record, decoder, "adapter") == []
    else:
        with pytest.raises(InvalidArgument, match="Equal shapes do not make it the same model"):
            check_base(named, record, decoder, "adapter")


def test_one_may_insist_as_the_message_says_and_it_is_told(bases, tmp_path) -> None:
    adapter = by_peft(bases["mine"], tmp_path / "adapter")

    def plinth(*arguments):
        done = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data")])
        return done.exit_code, " ".join(done.output.split())

    assert plinth("import", str(bases["other"]), "--name", "other")[0] == 0
    command = ("import", str(adapter), "--name", "tuned", "--base", "other")
    for _ in range(2):  # what was merged so is not found by one who does not insist
        code, said = plinth(*command)
        assert code == 1
        assert "say --allow-other-base if other@1 is what you mean" in said
        code, said = plinth(*command, "--allow-other-base")
        assert code == 0, said
        assert "warning: merged by --allow-other-base: the adapter was trained on" in said
    code, said = plinth("import", str(bases["other"]), "--name", "m", "--allow-other-base")
    assert code == 1
    assert "no PEFT adapter" in said


def test_an_export_whose_base_was_changed_tells_a_way_that_works(store, bases, tmp_path) -> None:
    """Its command has no --allow-other-base; importing what it exports has."""
    by_us(bases["mine"], tmp_path / "adapter")
    base = store.get("other")
    store.publish("tuned-adapter", "adapter", tmp_path / "adapter", parents=[base.ref])
    with pytest.raises(InvalidArgument) as caught:
        export_artifact(
            store,
            "tuned-adapter",
            tmp_path / "whole",
            ExportOptions(merge=True),
            workspace=tmp_path / "w",
        )
    assert caught.value.reason == "OTHER_BASE"
    assert "was trained on 'mine@1'" in caught.value.message
    assert "export it --with-base and import that folder with --base other@1" in (
        caught.value.message
    )
    out = tmp_path / "apart"
    options = ExportOptions(with_base=True)
    export_artifact(store, "tuned-adapter", out, options, workspace=tmp_path / "w")
    assert merged(store, out, "other@1", tmp_path, allow_other_base=True).kind == "model"


@pytest.mark.parametrize("said", ["2", [2.5], [-1], [True], {"id": 2}])
def test_ends_of_answers_that_are_no_ids_are_refused(store, bases, tmp_path, said) -> None:
    adapter = by_us(bases["mine"], tmp_path / "adapter")
    own = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps(own | {"stop_token_ids": said}))
    with pytest.raises(
        InvalidArgument, match=r"base\.json: stop_token_ids is .* list of token ids"
    ):
        merged(store, adapter, "mine", tmp_path)


def test_an_adapter_that_names_no_base_is_merged_with_a_word(store, bases, tmp_path) -> None:
    adapter = by_peft(bases["mine"], tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"{bases["mine"]}"', "null"))
    record = merged(store, adapter, "other", tmp_path)
    (told,) = record.manifest["extra"]["warnings"]
    assert told == "the adapter does not say which model it was trained on"


def test_pefts_reward_adapter_becomes_a_reward_model(store, bases, tmp_path) -> None:
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        bases["mine"], num_labels=1, pad_token_id=0
    )
    model = peft.get_peft_model(
        base, peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, r=4)
    ).eval()
    model.save_pretrained(tmp_path / "adapter")
    record = merged(store, tmp_path / "adapter", "mine", tmp_path)
    assert record.kind == "reward"
    ours = load_reward_model(store.fetch(record))
    ids = torch.arange(3, 43)
    backend = SdpaBackend(1, 40)
    with torch.no_grad():
        score = ours.scores(ours(ids, torch.arange(40), backend)[-1:], backend)
        assert float(model(ids[None]).logits[0, 0]) == pytest.approx(float(score[0]), abs=1e-4)


def test_a_store_of_an_older_plinths_adapters_is_read(bases, tmp_path) -> None:
    """Theirs say the digest alone."""
    store = ArtifactStore((tmp_path / "s").as_uri())
    import_model(store, str(bases["mine"]), "mine", workspace=tmp_path / "work")
    adapter = by_us(bases["mine"], tmp_path / "adapter")
    own = json.loads((adapter / "base.json").read_text())
    assert own.keys() == {"weights_digest", "stop_token_ids"}
    (adapter / "base.json").write_text(json.dumps({"weights_digest": own["weights_digest"]}))
    assert merged(store, adapter, "mine", tmp_path).kind == "model"
