import json
from itertools import islice

import pytest

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.builtin import BUILTIN, stdlib, stdlib_instruct
from plinth.trainer.data.corpus import read_split, write_corpus
from plinth.trainer.data.documents import Document


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


def test_one_document_needs_no_validation(tmp_path):
    with pytest.raises(InvalidArgument, match="validation_fraction to 0"):
        write(tmp_path / "a", [Document(text="alone")])
    assert write(tmp_path / "b", [Document(text="alone")], 0).documents["train"] == 1


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
    texts = [d.text for d in stdlib()]
    assert any(t.startswith("Assignment statements\n****") for t in texts)  # a topic of pydoc
    assert any("def dumps(" in t for t in texts)
    assert sum(len(t) for t in texts) > 8_000_000


def test_stdlib_instruct_asks_with_signatures():
    found = [dict(d.messages) for d in stdlib_instruct()]
    assert len(found) > 3000
    assert all(24 <= len(d["assistant"]) <= 480 for d in found)
    questions = [d["user"] for d in found]
    assert any("heappush(heap, item)" in q or "bisect_left(" in q for q in questions)
    assert set(BUILTIN) == {"stdlib", "stdlib-instruct", "stdlib-preferences"}


def test_stdlib_preferences_are_docstrings_against_what_a_rule_made_of_them():
    first, second = (list(islice(BUILTIN["stdlib-preferences"](), 400)) for _ in range(2))
    assert first == second
    assert {d.source for d in first} == {"rule:truncated", "rule:scrambled", "rule:foreign"}
    for document in first:
        answer = document.messages[-1][1]
        assert document.rejected not in ("", answer)
        if document.source == "rule:truncated":
            assert answer.startswith(document.rejected)
        if document.source == "rule:scrambled":
            assert sorted("".join(answer.split())) == sorted("".join(document.rejected.split()))
