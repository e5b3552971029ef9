import gzip
import json
import shutil

import pytest

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.documents import (
    CUT_CHARACTERS,
    MAX_CHARACTERS,
    Document,
    corpus_files,
    parse_document,
    read_file,
    read_files,
)


def read_folder(folder):
    return read_files(corpus_files(folder)[0], lambda _: None)


def test_each_kind_of_file_and_its_gz(tmp_path):
    (tmp_path / "a.txt").write_text("plain\r\ntext\n")
    (tmp_path / "b.md").write_text("# title")
    (tmp_path / "c.py").write_text("x = 1")
    (tmp_path / "d.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("no")
    found = [d.text for d in read_folder(tmp_path)]
    assert found == ["plain\ntext", "# title", "x = 1", "one", "two", "packed", "three"]


def test_boundary_lines_end_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\n\n")
    assert [d.text for d in read_file(tmp_path / "a.txt")] == ["one", "two\nlines"]


def test_long_texts_are_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 50 for i in range(2000)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    found = [d.text for d in read_file(tmp_path / "a.txt")]
    assert len(found) > 5
    assert all(CUT_CHARACTERS * 0.9 < len(t) < CUT_CHARACTERS * 1.2 for t in found[:-1])
    assert "\n\n".join(found) == "\n\n".join(paragraphs)


def test_a_line_without_end_stays_bounded(tmp_path):
    (tmp_path / "a.txt").write_text("é" * (5 * MAX_CHARACTERS))
    found = [d.text for d in read_file(tmp_path / "a.txt")]
    assert max(len(t) for t in found) <= MAX_CHARACTERS
    assert "".join(found) == "é" * (5 * MAX_CHARACTERS)


def test_a_byte_order_mark_and_split_characters(tmp_path):
    text = "x" * 65535 + "🦊\r\nend"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "".join(d.text for d in read_file(tmp_path / "a.txt")) == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("bin.txt", b"ab\0cd", "bin.txt: not UTF-8 text .*NUL.*iconv"),
        ("latin.md", b"caf\xe9 au lait", "latin.md: not UTF-8 text"),
        ("cut.txt", "né".encode()[:-1], "cut.txt: not UTF-8 text"),
        ("cut.txt.gz", gzip.compress(b"x" * 9000, mtime=0)[:-9], "cut.txt.gz: not a complete gzip"),
        ("no.gz.txt.gz", b"not gzip at all", "not a complete gzip"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: not JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "y" "z"}\n',
            r"a\.jsonl:2: not JSON \(Expecting ',' delimiter at character 14\);",
        ),
        ("a.jsonl", b"[1]", "a.jsonl:1: need an object"),
        ("a.jsonl", b'{"text": 5}', "must be a string, not int"),
        ("a.jsonl", rb'{"text": "\ud800"}', "lone surrogate at character 0"),
        ("a.jsonl", b'{"text": "a", "messages": []}', "one of 'text', 'messages'"),
        ("a.jsonl", b'{"messages": [{"role": "boss", "content": "x"}]}', "'role' of system"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}', "nothing to learn"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: not UTF-8"),
    ],
)
def test_bad_files_name_themselves_and_the_remedy(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidArgument, match=says):
        list(read_folder(tmp_path))


def test_folders_without_text(tmp_path):
    with pytest.raises(InvalidArgument, match="does not exist"):
        list(read_folder(tmp_path / "none"))
    chats = tmp_path / "elsewhere" / "chats.jsonl"
    chats.parent.mkdir()
    chats.write_text('{"text": "x"}\n')
    with pytest.raises(InvalidArgument, match=r"chats\.jsonl is a file; name the folder that"):
        list(read_folder(chats))
    list(read_folder(chats.parent))  # as it says
    shutil.rmtree(chats.parent)
    with pytest.raises(InvalidArgument, match="it is empty"):
        list(read_folder(tmp_path))
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(InvalidArgument, match=r"its files are: 1 of kind \.bin"):
        list(read_folder(tmp_path))


def test_suffixes_in_capitals_and_linked_folders_are_read_and_the_rest_is_told(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus / ".git", corpus / "sub", elsewhere / "deep"):
        folder.mkdir(parents=True)
    for name in ("A.TXT", "b.rst", "c.Markdown", "sub/d.TXT.GZ"):
        packed = name.endswith(".GZ")
        (corpus / name).write_bytes(gzip.compress(b"packed") if packed else name.encode())
    (elsewhere / "deep" / "e.md").write_text("linked")
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(corpus)  # ends nowhere
    (corpus / "broken.txt").symlink_to(tmp_path / "nothing")
    for name in ("x.json", "y.json", "z.png", "sub/Makefile", ".git/hidden.txt"):
        (corpus / name).write_text("{}")
    files, intake = corpus_files(corpus)
    assert [d.text for d in read_files(files, lambda _: None)] == [
        "A.TXT", "b.rst", "c.Markdown", "linked", "packed",
    ]  # fmt: skip
    assert (intake.unit, intake.taken) == ("files", 5)
    assert intake.left_out == {
        "of kind .json": 2,
        "of kind .png": 1,
        "of kind Makefile": 1,
        "a broken link, or no plain file": 1,
    }


def test_a_linked_folder_is_looked_into_only_where_it_may_be_read(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "out").symlink_to("/etc")
    told = []

    def check(path):
        told.append(path)
        raise InvalidArgument("not there")

    with pytest.raises(InvalidArgument, match="not there"):
        corpus_files(tmp_path / "corpus", check)
    assert told == [tmp_path / "corpus" / "out"]


def test_a_folder_of_json_says_how_rows_are_made_of_it(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    with pytest.raises(InvalidArgument, match=r"its files are: 1 of kind \.json") as caught:
        corpus_files(tmp_path)
    assert "jq -c '.[]' FILE.json > FILE.jsonl" in caught.value.message
    # What jq does there.
    rows = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files, intake = corpus_files(tmp_path)
    assert [d.text for d in read_files(files, lambda _: None)] == ["one", "two"]
    assert intake.left_out == {"of kind .json": 1}


def test_digests_tell_documents_apart():
    text = Document(text="a")
    chat = Document(messages=(("user", "a"), ("assistant", "b")))
    assert json.loads(chat.to_json())["messages"][1] == {"role": "assistant", "content": "b"}
    assert len({text.digest(), chat.digest(), Document(text="b").digest()}) == 3
    assert chat.size == 2


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ('"split_group": "\\ud800"', "'split_group' holds a lone surrogate"),
        ('"split_group": 7', "'split_group' must be a string, not int"),
        ('"cut_off": "yes"', "'cut_off' must be true or false, not str"),
        ('"cut_off": 1', "'cut_off' must be true or false, not int"),
    ],
)
def test_an_optional_key_that_is_read_is_not_passed_over(extra, says):
    with pytest.raises(InvalidArgument, match=f"f:1: {says}"):
        parse_document(f'{{"text": "hello", {extra}}}', "f:1")
    assert parse_document('{"text": "hello", "split_group": null, "cut_off": null}', "f:1")
