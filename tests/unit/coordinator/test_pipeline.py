"""Pipeline files: what is right is read, what is wrong is named with its path."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from plinth.coordinator.pipeline import STORED_BYTES, Pipeline, input_digest, parse
from plinth.coordinator.pipeline_text import MAX_BYTES
from plinth.coordinator.steps.train import TrainSpec
from plinth.coordinator.steps.train_shapes import LoraShape, ModelShape
from plinth.shared.errors import InvalidArgument

GOOD = """
name: small
steps:
  corpus: {kind: data, builtin: stdlib, max_bytes: 1_000_000}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 512}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  pretrain:
    kind: train
    objective: clm
    dataset: $dataset
    model: {layers: 2, hidden: 32, heads: 4, context: 64}
    max_seconds: 10
    learning_rate: 3e-3
    output: mini
  exam: {kind: evaluate, model: $pretrain, corpus: $corpus, require: {bits_per_byte_at_most: 9}}
  release: {kind: publish, model: $pretrain, after: [exam]}
  online: {kind: serve, model: $release, name: mini}
"""


def test_reads_steps_inputs_and_order() -> None:
    pipeline = parse(GOOD)
    assert pipeline.name == "small"
    assert list(pipeline.steps)[:2] == ["corpus", "vocabulary"]
    assert pipeline.needs("dataset") == {"corpus", "vocabulary"}
    assert pipeline.needs("release") == {"pretrain", "exam"}
    assert pipeline.output_name("pretrain") == "mini"
    assert pipeline.output_name("corpus") == "small-corpus"
    assert pipeline.steps["dataset"].produces() == "dataset"
    assert parse(pipeline.text) == Pipeline("small", pipeline.steps, pipeline.text)


def test_overrides_set_and_take_away() -> None:
    overrides = {
        "steps.corpus.corpus_dir": "/data/texts",
        "steps.corpus.builtin": "",
        "steps.pretrain.model.layers": "7",
        "steps.exam.prompts": "[a, b]",
        "name": "mine",
    }
    pipeline = parse(GOOD, overrides)
    corpus, pretrain = pipeline.steps["corpus"], pipeline.steps["pretrain"]
    assert (corpus.corpus_dir, corpus.builtin) == ("/data/texts", None)  # type: ignore[attr-defined]
    assert pretrain.model.layers == 7  # type: ignore[attr-defined]
    assert pipeline.steps["exam"].prompts == ("a", "b")  # type: ignore[attr-defined]
    assert pipeline.output_name("corpus") == "mine-corpus"


@pytest.mark.parametrize(
    ("path", "value", "field", "says"),
    [
        ("steps.pretrain.learnin_rate", "1", "steps.pretrain.learnin_rate", "learning_rate?"),
        ("steps.pretrain.model.layer", "1", "steps.pretrain.model.layer", "layers?"),
        ("steps.exam.require.bits_per_byte_below", "1", "steps.exam.require", "_below_ngram?"),
        ("steps.corpus.kind", "date", "steps.corpus.kind", "did you mean data?"),
        ("steps.dataset.tokenizer", "$vocabularys", "steps.dataset.tokenizer", "vocabulary?"),
        ("steps.dataset.tokenizer", "$corpus", "steps.dataset.tokenizer", "makes a corpus"),
        ("steps.release.after", "[exams]", "steps.release.after", "did you mean exam?"),
        ("steps.corpus.after", "[dataset]", "steps", "wait for one another"),
        ("steps.corpus.corpus_dir", "texts", "steps.corpus.corpus_dir", "absolute"),
        ("steps.corpus.corpus_dir", "/x", "steps.corpus", "corpus_dir and builtin"),
        ("steps.vocabulary.vocab_size", "10", "steps.vocabulary.vocab_size", "260"),
        ("steps.vocabulary.vocab_size", "many", "steps.vocabulary.vocab_size", "integer"),
        ("steps.pretrain.max_seconds", "", "steps.pretrain", "no end"),
        ("steps.pretrain.dataset", "", "steps.pretrain.dataset", "is needed"),
        ("steps.Corpus", "{kind: data}", "steps.Corpus", "a letter first"),
        ("naem", "x", "naem", "did you mean name?"),
        ("name", "", "name", "needs a name"),
        ("stps.corpus.kind", "data", "stps.corpus.kind", "did you mean steps?"),
        ("steps.corpse.kind", "data", "steps.corpse.kind", "did you mean corpus?"),
        ("name.x", "y", "name.x", "is no mapping"),
        ("steps.corpus.max_bytes", "[", "steps.corpus.max_bytes", "no YAML"),
    ],
)
def test_mistakes_are_named(path: str, value: str, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(GOOD, {path: value})
    assert says in caught.value.message
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is a mapping"),
        ("- a", "is a mapping"),
        ("name: [", "no YAML"),
        ("name: a\nname: b\nsteps: {}", "twice"),
        ("name: &a b\nsteps: *a", "aliases"),
        ("name: a\nsteps: {}", "1 to 64 steps"),
        ("name: a\nsteps: {x: 3}", "a mapping with a kind"),
        ("a: !!python/object:os.system x", "no YAML"),
        ("x" * 300_000, "KiB"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_what_is_no_pipeline(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse(text)


def test_a_home_folder_is_no_path_of_a_stage() -> None:
    with pytest.raises(InvalidArgument, match=r"must be an absolute path .*not '~/rows'.*~ is nob"):
        parse(GOOD, {"steps.corpus.corpus_dir": "~/rows", "steps.corpus.builtin": ""})


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(GOOD, {"steps.pretrain.sed": "1", "steps.vocabulary.vocab_size": "3"})
    assert "seed?" in caught.value.message
    assert "vocab_size" in caught.value.message


def test_digest_follows_whatever_shapes_the_result() -> None:
    def digest(text: str = GOOD, corpus: str = "c", **more: str) -> str:
        spec = parse(text).steps["vocabulary"]
        inputs = {"corpus": corpus}
        return input_digest(spec, inputs=inputs, surroundings=more)

    assert digest() == digest()
    assert digest(GOOD.replace("$corpus, vocab", "other@3, vocab")) == digest()  # content counts
    assert digest(GOOD.replace("vocab_size: 512", "vocab_size: 513")) != digest()
    assert digest(corpus="d") != digest()
    assert digest(python="3.12") != digest()


PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text()


def test_the_pages_way_from_rows_to_a_tuned_model_is_a_pipeline() -> None:
    (text,) = re.findall(r"```yaml pipeline\n(.*?)```", PAGE, re.S)
    pipeline = parse(text)
    assert pipeline.needs("tuned") == {"rows"}
    assert pipeline.output_name("tuned") == "tuned"
    assert isinstance(tuned := pipeline.steps["tuned"], TrainSpec)
    assert tuned.lora is not None
    whole = parse(text, {"steps.tuned.lora": ""}).steps["tuned"]  # as the file's comment says
    assert isinstance(whole, TrainSpec)
    assert whole.lora is None


def test_the_page_has_all_that_is_said_of_a_new_model() -> None:
    (step,) = re.findall(r"## A new model\n\n```yaml\n(.*?)```", PAGE, re.S)
    text = f"name: new\nsteps:\n{textwrap.indent(step, '  ')}".replace("$dataset", "there")
    assert isinstance(base := parse(text).steps["base"], TrainSpec)
    assert base.model is not None and base.model.family == "gemma3_text"
    table = PAGE.split("| `model.` |")[1].split("\n\n")[0]
    said = "\n".join(line.split("|")[1] for line in table.splitlines()[1:])
    assert set(re.findall(r"`(\w+)`", said)) == set(ModelShape.model_fields)


def test_the_page_has_all_settings_of_lora() -> None:
    table = PAGE.split("| `lora.` |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(LoraShape.model_fields)


@pytest.mark.parametrize(
    "value",
    [
        "2026-99-99",
        "9" * 6000,
        "0b_",
        "!!int x",
        "!!bool x",
        "!!timestamp x",
        "!!float x",
        "[" * 100_000,
    ],
)
def test_what_only_looks_like_yaml_is_refused(value: str) -> None:
    for say in (lambda: parse(f"name: {value}\n"), lambda: parse(GOOD, {"name": value})):
        with pytest.raises(InvalidArgument, match="no YAML") as caught:
            say()
        assert caught.value.reason == "PIPELINE_INVALID"


def test_overrides_are_counted_with_the_text() -> None:
    for overrides in (
        {"name": "x" * MAX_BYTES},
        {f"steps.exam.x{n}": "y" * 1000 for n in range(300)},
        {"a." * (MAX_BYTES // 2): "1"},
    ):
        with pytest.raises(InvalidArgument, match="256 KiB"):
            parse(GOOD, overrides)


def test_what_was_accepted_is_read_again_although_it_has_grown() -> None:
    topics = ", ".join(f"t{n}" for n in range(9000))
    constraint = "{name: brief, ask: Be brief., checks: [{kind: max_words, n: 20}]}"
    step = f"{{kind: prompts, held_out: 1, constraints: [{constraint}], topics: [{topics}]}}"
    pipeline = parse(f"name: grown\nsteps: {{a: {step}, b: {step}, c: {step}}}")
    assert len(pipeline.text) > MAX_BYTES
    assert parse(pipeline.text, most=STORED_BYTES).steps == pipeline.steps


def test_a_page_of_mistakes_is_enough() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse("name: p\n" + "".join(f"nam{n}: 1\n" for n in range(20_000)))
    assert caught.value.message.count("unknown key") == 20
