import json
import re
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainings
from plinth.coordinator.steps.data import DataSpec
from plinth.shared.errors import InvalidArgument
from plinth.shared.prompt_set import Prompt, write_prompts
from plinth.trainer.data.builtin import BUILTIN, stdlib
from plinth.trainer.data.corpus import read_split, write_corpus
from plinth.trainer.data.documents import Document
from plinth.trainer.data.prompt_dataset import tokenize_prompts
from plinth.trainer.data.tokenize import tokenize_corpus


@cache
def builtin(name):
    """Read once: each reads the whole library."""
    return list(BUILTIN[name]())


def write(out, documents, fraction=0.1, **options):
    return write_corpus(
        iter(documents), out, source="here", validation_fraction=fraction, **options
    )


def split(out):
    return {name: {d.text for d in read_split(out, name)} for name in ("train", "validation")}


def test_duplicates_go_and_the_split_is_by_hash(tmp_path):
    documents = [Document(text=f"text {i % 500}") for i in range(1000)]
    counts = write(tmp_path / "a", documents)
    assert counts.duplicates == 500
    assert sum(counts.documents.values()) == 500
    assert 25 < counts.documents["validation"] < 80
    first = split(tmp_path / "a")
    assert not first["train"] & first["validation"]
    # More documents, in another order: everybody stays on his side.
    write(tmp_path / "b", [Document(text=f"text {i}") for i in reversed(range(800))])
    second = split(tmp_path / "b")
    assert first["validation"] <= second["validation"]
    assert first["train"] <= second["train"]


def test_few_documents_still_have_one_held_out(tmp_path):
    counts = write(tmp_path / "a", [Document(text=f"only {i}") for i in range(3)], 0.001)
    assert counts.documents == {"train": 2, "validation": 1}
    sides = split(tmp_path / "a")
    assert sides["train"] | sides["validation"] == {"only 0", "only 1", "only 2"}
    assert counts.bytes == {"train": 12, "validation": 6}


@pytest.mark.parametrize(
    "alone",
    [
        Document(text="alone"),
        Document(messages=(("user", "q"), ("assistant", "a"))),
        Document(messages=(("user", "q"), ("assistant", "a")), rejected="b"),
    ],
)
def test_one_document_needs_no_validation(tmp_path, alone):
    with pytest.raises(InvalidArgument, match="validation_fraction to 0"):
        write(tmp_path / "a", [alone])
    assert write(tmp_path / "b", [alone], 0).documents == {"train": 1, "validation": 0}
    DataSpec(kind="data", builtin="stdlib", validation_fraction=0)


def test_shards_are_limited_and_bytes_are_capped(tmp_path):
    documents = [Document(text=f"{i:0100}") for i in range(300)]
    counts = write(tmp_path / "a", documents, shard_bytes=2000, max_bytes=20_000)
    files = sorted((tmp_path / "a" / "train").iterdir())
    assert len(files) > 5
    assert max(f.stat().st_size for f in files) < 2300
    assert sum(counts.bytes.values()) == 20_000
    assert json.loads((tmp_path / "a" / "corpus.json").read_text())["digest"] == counts.digest


def test_empty_and_mixed_corpora(tmp_path):
    with pytest.raises(InvalidArgument, match="corpus here is empty"):
        write(tmp_path / "a", [])
    mixed = [Document(text="a"), Document(messages=(("assistant", "b"),))]
    with pytest.raises(InvalidArgument, match="mixes plain text and chat"):
        write(tmp_path / "b", mixed)


def test_stdlib_is_the_same_every_time_and_has_documentation(tmp_path):
    def begin(name):
        counts = write(tmp_path / name, stdlib(), max_bytes=400_000)
        return counts.digest, counts.bytes

    assert begin("a") == begin("b")
    texts = [d.text for d in builtin("stdlib")]
    assert any(t.startswith("Assignment statements\n****") for t in texts)  # a topic of pydoc
    assert any("def dumps(" in t for t in texts)
    assert sum(len(t) for t in texts) > 8_000_000


def test_stdlib_instruct_asks_with_signatures():
    found = [dict(d.messages) for d in builtin("stdlib-instruct")]
    assert len(found) > 3000
    assert all(24 <= len(d["assistant"]) <= 480 for d in found)
    questions = [d["user"] for d in found]
    assert any("heappush(heap, item)" in q or "bisect_left(" in q for q in questions)
    assert set(BUILTIN) == {"stdlib", "stdlib-instruct", "stdlib-preferences"}


def test_stdlib_preferences_are_docstrings_against_what_a_rule_made_of_them():
    first = builtin("stdlib-preferences")[:400]
    second = list(islice(BUILTIN["stdlib-preferences"](), 400))
    assert first == second
    rules = ("truncated", "scrambled", "repeated", "misworded", "foreign")
    assert {d.source for d in first} == {f"rule:{rule}" for rule in rules}
    for document in first:
        answer = document.messages[-1][1]
        words, worse = answer.split(), document.rejected.split()
        assert "\n" not in answer
        assert worse not in ([], words)
        match document.source.removeprefix("rule:"):
            case "truncated":
                assert worse == words[: len(worse)]
            case "scrambled":
                assert sorted(worse) == sorted(words)
            case "repeated":
                assert set(worse) == set(words)
                assert len(worse) > len(words)
            case "misworded":
                changed = sum(a != b for a, b in zip(words, worse, strict=True))
                assert 1 <= changed <= max(1, len(words) // 3)


# -- what is held out ----------------------------------------------------------------------------


def asked(document):
    """What a document asks, by another way than the split's: its first turn's words."""
    first = document.messages[0][1] if document.messages else document.text
    return tuple(first.lower().split())


def of_one_prompt(form, prompt, number):
    question = ("user", f"  What\nis {prompt}?" if number % 2 else f"what IS {prompt}?")
    answer = ("assistant", f"It is {number}.")
    match form:
        case "text":
            return Document(text=f"What is {prompt}?" + " \n" * number)
        case "messages" if number % 3:
            return Document(messages=(question, answer))
        case "messages":  # the same opening, gone on with
            more = (("user", "And?"), ("assistant", f"No {number}."))
            return Document(messages=(question, answer, *more))
    return Document(messages=(question, answer), rejected="no")


@pytest.mark.parametrize("form", ["text", "messages", "pairs"])
@pytest.mark.parametrize("prompts", [2, 7, 150])
def test_documents_of_one_prompt_are_on_one_side(tmp_path, form, prompts):
    documents = [of_one_prompt(form, n % prompts, n) for n in range(4 * prompts)]
    counts = write(tmp_path / "a", documents, 0.2)
    sides = [{asked(d) for d in read_split(tmp_path / "a", s)} for s in counts.documents]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == prompts
    assert min(counts.documents.values()) > 0


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_no_builtin_corpus_has_a_prompt_on_both_sides(tmp_path, name):
    counts = write(tmp_path / "a", builtin(name), max_bytes=1_500_000)
    sides = [{asked(d) for d in read_split(tmp_path / "a", s)} for s in counts.documents]
    assert not sides[0] & sides[1]
    assert 0.05 < counts.held_out < 0.15


def test_what_is_asked_about_a_held_out_module_is_in_no_builtin_corpus_of_that_fraction(tmp_path):
    """By the questions' own words: of a module that is asked about, no text was learned."""

    def sides(name):
        write(tmp_path / name, builtin(name), 0.15)
        return [list(read_split(tmp_path / name, split)) for split in ("train", "validation")]

    learned = {d.text for d in sides("stdlib")[0]}
    tuned, _ = sides("stdlib-instruct")
    _, held_out = sides("stdlib-preferences")
    questions = {d.messages[0][1] for d in held_out}
    assert len(questions) > 500
    assert not questions & {d.messages[0][1] for d in tuned}
    answers = {d.messages[-1][1] for d in held_out if len(d.messages[-1][1]) > 80}
    flat = [" ".join(text.split()) for text in learned]
    found = sum(any(answer in text for text in flat) for answer in answers)
    assert found < 0.05 * len(answers)  # docstrings that two modules share


def test_a_prompt_held_out_of_one_dataset_is_held_out_of_the_others(tmp_path):
    """Of those that are split at the same fraction: what is measured on pairs is not tuned on."""
    sides = {}
    for name in ("stdlib-instruct", "stdlib-preferences"):
        write(tmp_path / name, builtin(name), 0.1, max_bytes=400_000)
        sides[name] = [
            {asked(d) for d in read_split(tmp_path / name, s)} for s in ("train", "validation")
        ]
    (learned, _), (_, measured) = sides.values()
    assert len(measured) > 50
    assert not learned & measured


def corpus_of(folder, sides):
    for split, documents in sides.items():
        (folder / split).mkdir(parents=True)
        lines = "".join(f"{document.to_json()}\n" for document in documents)
        (folder / split / "documents-00000.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize("form", ["text", "messages", "pairs"])
def test_a_dataset_is_not_made_of_a_corpus_whose_splits_overlap(tmp_path, form):
    """Whoever made it: an earlier Plinth, or a person."""
    tokenizer = trainings.tokenizer(tmp_path / "tokenizer")

    def tokenize(name, sides):
        return tokenize_corpus(
            corpus_of(tmp_path / name / "corpus", sides),
            tokenizer,
            tmp_path / name / "dataset",
            tokenizer_ref="t@1",
            tokenizer_digest="sha256:0",
            corpus_ref="mine@3",
            **trainings.chatml(tokenizer),
        )

    apart = {"train": [of_one_prompt(form, n, n) for n in range(9)]}
    apart["validation"] = [of_one_prompt(form, 9, 9)]
    assert tokenize("good", apart).splits["validation"].documents
    apart["validation"].append(of_one_prompt(form, 3, 14))
    with pytest.raises(InvalidArgument, match=r"corpus mine@3: the .*3\?.* train and in valid"):
        tokenize("bad", apart)


def test_a_dataset_is_not_made_of_prompts_whose_splits_overlap(tmp_path):
    tokenizer = trainings.tokenizer(tmp_path / "tokenizer")
    write_prompts([Prompt("a?"), Prompt("b?")], tmp_path / "train.jsonl")
    write_prompts([Prompt("c?"), Prompt(" B?")], tmp_path / "validation.jsonl")
    with pytest.raises(InvalidArgument, match="prompt ' B\\?' is in train and in validation"):
        tokenize_prompts(
            tmp_path,
            tokenizer,
            tmp_path / "out",
            tokenizer_ref="t@1",
            tokenizer_digest="sha256:0",
            render=lambda batch: [[1] for _ in batch],
        )


LINES = st.integers(1, 400).map(lambda n: f"line {n} of a text\n" * n)


@settings(max_examples=40)
@given(texts=st.lists(LINES, min_size=1, max_size=8, unique=True), fraction=st.floats(0.01, 0.5))
def test_a_small_text_corpus_holds_out_what_was_asked(tmp_path_factory, texts, fraction):
    """Not one whole document of three. 256 bytes are the least, where there are twice as many."""
    out = tmp_path_factory.mktemp("corpus") / "a"
    documents = [Document(text=text) for text in texts]
    total = sum(document.size for document in documents)
    if total < 512 and len(texts) == 1:
        return
    counts = write(out, documents, fraction)
    held = counts.bytes["validation"]
    least = max(256 + 32, min(document.size for document in documents) if total < 1024 else 0)
    assert 0 < held <= max(2 * fraction * total + 32, least)
    assert held >= min(0.4 * fraction * total, *(d.size for d in documents)) - 32
    # Nothing is lost but line ends at a cut.
    kept = sorted(line for s in counts.documents for d in read_split(out, s) for line in
                  d.text.split("\n") if line)  # fmt: skip
    assert kept == sorted(line for text in texts for line in text.split("\n") if line)


GROUPS = st.sampled_from(["", "g1", "g2", "g3", "g4", "g5"])


def grouped(form, prompt, number, group):
    return replace(of_one_prompt(form, prompt, number), split_group=group)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), GROUPS), min_size=2, max_size=30),
    form=st.sampled_from(["text", "messages", "pairs"]),
    fraction=st.sampled_from([0.02, 0.2, 0.5]),
)
def test_neither_a_group_nor_a_prompt_is_on_both_sides(tmp_path_factory, rows, form, fraction):
    """Groups may share prompts. The next step refuses a prompt that is on both sides."""
    out = tmp_path_factory.mktemp("corpus")
    documents = [grouped(form, p, n, group) for n, (p, group) in enumerate(rows)]
    try:
        write(out / "a", documents, fraction, max_left_out=1)
    except InvalidArgument as none:
        assert "has a single" in none.message
        return
    sides = [list(read_split(out / "a", s)) for s in ("train", "validation")]
    for what in (asked, lambda d: d.split_group or None):
        one, other = ({what(d) for d in side} - {None} for side in sides)
        assert not one & other
    assert all(sides)
    # And in any order.
    write(out / "b", reversed(documents), fraction, max_left_out=1)
    for split, side in zip(("train", "validation"), sides, strict=True):
        assert {asked(d) for d in read_split(out / "b", split)} == {asked(d) for d in side}


def test_a_corpus_of_groups_that_share_a_prompt_says_so(tmp_path):
    documents = [grouped("messages", 1, n, f"book {n}") for n in range(60)]
    with pytest.raises(InvalidArgument, match=r"single group of rows .* validation_fraction to 0"):
        write(tmp_path / "a", documents, 0.2)
    others = [grouped("messages", n, n, f"other {n}") for n in range(2, 60)]
    counts = write(tmp_path / "b", [*documents, *others], 0.2)
    assert min(counts.documents.values()) > 0


# -- max_bytes -----------------------------------------------------------------------------------


def chat(number, size):
    return Document(messages=(("user", f"{number:06}"), ("assistant", "a" * (size - 6))))


def test_a_big_document_does_not_end_a_capped_corpus(tmp_path):
    big = [chat(0, 9_000), chat(1, 50_000)]
    counts = write(tmp_path / "a", [*big, *(chat(n, 100) for n in range(2, 500))], max_bytes=20_000)
    assert sum(counts.bytes.values()) == 20_000
    assert counts.intake[-1].noted == {"too large for what max_bytes left": 1}


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(10, 4000), min_size=3, max_size=60), most=st.integers(20, 30_000))
def test_a_cap_is_filled_and_never_exceeded(tmp_path_factory, sizes, most):
    documents = [chat(n, size) for n, size in enumerate(sizes)]
    out = tmp_path_factory.mktemp("corpus")
    if min(sizes) > most:
        with pytest.raises(InvalidArgument, match="set max_bytes to at least that") as caught:
            write(out / "a", documents, 0, max_bytes=most)
        said = int(re.findall(r"has ([\d,]+) bytes", caught.value.message)[0].replace(",", ""))
        assert sum(write(out / "b", documents, 0, max_bytes=said).bytes.values()) <= said
        return
    counts = write(out / "a", documents, 0, max_bytes=most)
    taken = list(read_split(out / "a", "train"))
    total = sum(d.size for d in taken)
    assert 0 < total == counts.bytes["train"] <= most
    # Whatever came after the last one that was taken had no room.
    later = [d.size for d in documents[documents.index(taken[-1]) + 1 :]]
    assert total >= 0.99 * most or all(size > most - total for size in later)


def test_a_text_is_cut_at_the_cap(tmp_path):
    texts = [Document(text="".join(f"line {n}\n" for n in range(900))), Document(text="more")]
    counts = write(tmp_path / "a", texts, 0, max_bytes=1000)
    assert 990 < counts.bytes["train"] <= 1000
    (only,) = read_split(tmp_path / "a", "train")
    assert texts[0].text.startswith(only.text + "\n")
    assert counts.intake[-1].noted == {"cut at max_bytes": 1}


# -- what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [0, 40, 90])
def test_what_is_left_out_is_told_and_past_a_half_asked_for(tmp_path, copies):
    documents = [chat(n, 50) for n in range(60)] + [chat(0, 50)] * copies
    if copies <= 60:
        intake = write(tmp_path / "a", documents).intake[-1]
        assert (intake.unit, intake.taken, intake.missing) == ("chats", 60, copies)
        assert json.loads((tmp_path / "a" / "corpus.json").read_text())["intake"][-1] == (
            intake.to_json()
        )
        return
    with pytest.raises(InvalidArgument, match="90 repeated word for word") as caught:
        write(tmp_path / "a", documents)
    accepted = float(caught.value.message.split("max_left_out: ")[1])
    assert write(tmp_path / "b", documents, max_left_out=accepted).documents
