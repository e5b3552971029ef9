"""`plinth models` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner, Result

from checkpoints import byte_tokenizer, random_llama
from plinth.cli.models import app
from plinth.models.adapters.lora import LoraConfig, attach
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.publish import import_model
from plinth.models.weights import load_decoder, weights_digest
from plinth.shared.errors import InvalidArgument
from plinth.shared.records import DeploymentRecords
from plinth.shared.store import ArtifactStore


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = byte_tokenizer(random_llama(tmp_path / "hf", layers=1))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def plinth(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data")])


def test_import_list_show_alias(source: Path, tmp_path: Path) -> None:
    done = plinth(tmp_path, "import", str(source), "--name", "chat")
    assert done.exit_code == 0, done.output
    assert "chat@1" in done.output
    assert "mit" in done.output
    assert plinth(tmp_path, "alias", "chat:prod", "chat@1").exit_code == 0
    listed = plinth(tmp_path, "list")
    assert "chat@1" in listed.output
    assert "prod" in listed.output
    shown = json.loads(plinth(tmp_path, "show", "chat:prod").output)
    assert shown["license"] == "mit"
    assert shown["extra"]["weights_digest"] == weights_digest(source)
    assert shown["data_digests"]["original"].startswith("sha256:")
    assert str(source) not in json.dumps(shown)
    store = ArtifactStore((tmp_path / "data" / "store").as_uri())
    transformers.AutoModelForCausalLM.from_pretrained(store.fetch("chat"))
    assert list((tmp_path / "data" / "work").iterdir()) == []


def test_import_tells_what_it_left_out(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    done = plinth(tmp_path, "import", str(source), "--name", "chat")
    assert done.exit_code == 0, done.output
    assert "warning: README.md: its header is not YAML" in " ".join(done.output.split())


def test_a_model_is_served_no_more_and_again(source: Path, tmp_path: Path) -> None:
    plinth(tmp_path, "import", str(source), "--name", "chat")
    assert plinth(tmp_path, "serve", "chat").exit_code == 0
    records = DeploymentRecords(ArtifactStore((tmp_path / "data" / "store").as_uri()))
    wrong = plinth(tmp_path, "stop", "caht")
    assert wrong.exit_code == 1
    assert "served is chat" in wrong.output
    assert [one.name for one in records.list()] == ["chat"]
    done = plinth(tmp_path, "stop", "chat")
    assert done.exit_code == 0, done.output
    assert records.list() == []
    again = done.output.partition("`plinth models ")[2].partition("`")[0].split()
    assert plinth(tmp_path, *again).exit_code == 0
    assert [one.name for one in records.list()] == ["chat"]


def test_serve_writes_what_is_wanted_and_keeps_its_shards(source: Path, tmp_path: Path) -> None:
    assert plinth(tmp_path, "import", str(source), "--name", "chat").exit_code == 0
    records = DeploymentRecords(ArtifactStore((tmp_path / "data" / "store").as_uri()))
    done = plinth(tmp_path, "serve", "chat", "--shards", "3")
    assert done.exit_code == 0, done.output
    assert "chat@1 by 3 shards" in done.output
    assert plinth(tmp_path, "serve", "chat@1").exit_code == 0
    (wanted,) = records.list()
    assert (wanted.name, wanted.artifact, wanted.shards) == ("chat", "chat@1", 3)
    assert "chat@1 by 1 shard\n" in plinth(tmp_path, "serve", "chat", "--shards", "1").output
    ranged = plinth(tmp_path, "serve", "chat", "--shards", "1", "--max-shards", "4")
    assert "chat@1 by 1 to 4 shards" in ranged.output
    assert plinth(tmp_path, "serve", "chat", "--shards", "2").exit_code == 0
    (wanted,) = records.list()
    assert (wanted.shards, wanted.max_shards) == (2, 4), "the most stays as it was"
    few = plinth(tmp_path, "serve", "chat", "--shards", "5")
    assert few.exit_code == 1
    assert "max_shards is 5 to 64, or 0 for always 5" in " ".join(few.output.split())
    assert plinth(tmp_path, "serve", "chat", "--shards", "3", "--max-shards", "0").exit_code == 0
    missing = plinth(tmp_path, "serve", "nobody")
    assert missing.exit_code == 1
    assert "nobody" in missing.output


def test_a_second_import_finds_the_first(
    source: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    first = import_model(store, str(source), "chat", workspace=tmp_path / "work")
    assert import_model(store, str(source), "chat", workspace=tmp_path / "work") == first
    random_llama(source, layers=1, seed=5)
    second = import_model(store, str(source), "chat", workspace=tmp_path / "work")
    assert second.version == 2


def test_errors_are_one_line_and_leave_nothing(source: Path, tmp_path: Path) -> None:
    cases = {
        ("import", "nowhere", "--name", "x"): "no such folder or file",
        ("import", str(source), "--name", "Not A Name"): "name",
        ("show", "nobody"): "nobody",
        ("alias", "chat", "3"): "is no alias",
        ("alias", "chat:prod", "3"): "chat",
    }
    for arguments, words in cases.items():
        done = plinth(tmp_path, *arguments)
        assert done.exit_code == 1, done.output
        assert words in done.output
        assert "Traceback" not in done.output
    (source / "model.safetensors").write_bytes(b"cut")
    done = plinth(tmp_path, "import", str(source), "--name", "x")
    assert (done.exit_code, "damaged" in done.output) == (1, True)
    assert list((tmp_path / "data" / "work").iterdir()) == []


def test_names_are_checked_before_any_work(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        import_model(store, "smollm2", "../x", workspace=tmp_path / "work")
    assert not (tmp_path / "work").exists()


# -- export and list ------------------------------------------------------------------------------


@pytest.fixture
def lineage(source: Path, tmp_path: Path) -> ArtifactStore:
    """A base, a model tuned from it, its adapter, a judge; and words, which are no model."""
    assert plinth(tmp_path, "import", str(source), "--name", "base").exit_code == 0
    store = ArtifactStore((tmp_path / "data" / "store").as_uri())
    words = store.publish("words", "tokenizer", store.fetch("base"))
    decoder = load_decoder(store.fetch("base"))
    attach(decoder, LoraConfig(rank=2), 1)
    save_adapter(decoder, LoraConfig(rank=2), tmp_path / "adapter", "base@1")
    base = store.get("base")
    store.publish(
        "tuned-adapter",
        "adapter",
        tmp_path / "adapter",
        parents=["base@1", words.ref],
        data_digests={base.ref: base.digest},
    )
    store.publish("tuned", "model", store.fetch("base"), parents=[words.ref, "base@1"])
    store.publish("a-judge-of-answers", "reward", store.fetch("base"), parents=["base@1"])
    store.set_alias("tuned", "prod", 1)
    return store


def test_list_tells_kind_and_base_of_all_that_is_made_of_models(
    lineage: ArtifactStore, tmp_path: Path
) -> None:
    """Whole lines where no terminal reads them, however long the references are. A family is its
    config.json's, its job's, or that of what it was made from."""
    begun = {"objective": "clm", "model": {"family": "gemma3_text", "layers": 2}}
    lineage.publish("new", "model", lineage.fetch("base"), parents=["words@1"], config=begun)
    rows = words_of(plinth(tmp_path, "list").output)
    assert {ref: row[:4] for ref, row in rows.items() if ref != "words@1"} == {
        "base@1": ["base@1", "model", "llama", "hf"],  # no base: it came from the folder hf
        "tuned@1": ["tuned@1", "model", "llama", "base@1"],
        "tuned-adapter@1": ["tuned-adapter@1", "adapter", "llama", "base@1"],
        "a-judge-of-answers@1": ["a-judge-of-answers@1", "reward", "llama", "base@1"],
        "new@1": ["new@1", "model", "gemma3_text", "words@1"],
    }
    assert rows["tuned@1"][4] == "prod"


def words_of(table: str) -> dict[str, list[str]]:
    """First word of each line that begins with a version → the line's words."""
    lines = [line.replace("│", " ").split() for line in table.splitlines()]
    return {words[0]: words for words in lines if words and "@" in words[0]}


def test_list_keeps_references_whole_on_a_narrow_terminal(
    lineage: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    monkeypatch.setenv("COLUMNS", "60")
    output = plinth(tmp_path, "list").output
    assert "…" not in output
    for ref in ("base@1", "tuned@1", "tuned-adapter@1", "a-judge-of-answers@1"):
        assert ref in output


def test_export_says_what_it_made(lineage: ArtifactStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = plinth(tmp_path, "export", "tuned:prod", str(out), "--dtype", "bf16")
    assert done.exit_code == 0, done.output
    assert f"tuned@1 → {out}" in " ".join(done.output.split())
    assert "model, bf16, " in done.output
    transformers.AutoModelForCausalLM.from_pretrained(out)
    again = plinth(tmp_path, "export", "tuned:prod", str(out))
    assert again.exit_code == 1
    assert "--force" in " ".join(again.output.split())
    assert plinth(tmp_path, "export", "tuned:prod", str(out), "--force").exit_code == 0
    adapter = plinth(tmp_path, "export", "tuned-adapter", str(tmp_path / "a"), "--with-base")
    assert f"its base: {tmp_path / 'a' / 'base'}" in adapter.output
    wrong = plinth(tmp_path, "export", "tuned", str(tmp_path / "b"), "--dtype", "int8")
    assert wrong.exit_code == 1
    assert "must be keep, fp32, bf16, fp16" in wrong.output
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("ref", ["tuned-adapter", "a-judge-of-answers"])
def test_what_is_no_model_is_not_served(lineage: ArtifactStore, tmp_path: Path, ref: str) -> None:
    done = plinth(tmp_path, "serve", ref)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "only a model can be served" in said
    assert ("is an adapter; make a whole model of it" in said) == (ref == "tuned-adapter")
