import json

import numpy as np
import pytest
from tokenizers import Tokenizer

import trainings
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.trainer.data.corpus import read_split
from plinth.trainer.data.shards import Split, SplitWriter, read_info, token_dtype
from plinth.trainer.data.tokenize import tokenize_corpus


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    trainings.dataset(folder, trainings.texts(120), shard_tokens=1000)
    return folder


def test_ids_are_the_tokenizers_with_an_end_after_each_document(plain):
    encoder = Tokenizer.from_file(str(plain / "tokenizer" / "tokenizer.json"))
    split = Split(plain / "dataset", "train")
    wanted = [[*encoder.encode(d.text).ids, 0] for d in read_split(plain / "corpus", "train")]
    assert [split.document(i)[0].tolist() for i in range(split.documents)] == wanted
    flat = [t for ids in wanted for t in ids]
    assert split.tokens == len(flat)
    assert len(split.info.splits["train"].shards) > 2
    assert split.window(0, split.tokens).tolist() == flat
    assert split.window(990, 40).tolist() == flat[990:1030]
    assert split.lengths().tolist() == [len(ids) for ids in wanted]
    with pytest.raises(IndexError):
        split.window(split.tokens - 3, 4)


def test_validation_bytes(plain):
    split = Split(plain / "dataset", "validation")
    sizes = [len(d.text.encode()) for d in read_split(plain / "corpus", "validation")]
    assert split.document_bytes.tolist() == sizes


def test_digests_cover_every_file(plain):
    info = read_info(plain / "dataset")
    files = {str(p.relative_to(plain / "dataset")) for p in (plain / "dataset").rglob("*.*")}
    assert set(info.digests) == files - {"dataset.json"}
    assert info.dtype == "<u2"
    assert token_dtype(70_000) == "<u4"


def test_masks_cover_the_answers_only(tmp_path):
    trainings.dataset(tmp_path, trainings.chats(30))
    encoder = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    split = Split(tmp_path / "dataset", "train")
    first = next(read_split(tmp_path / "corpus", "train"))
    ids, mask = split.document(0)
    learnt = encoder.decode(ids[mask.astype(bool)].tolist(), skip_special_tokens=False)
    assert learnt == dict(first.messages)["assistant"] + "<|im_end|>"
    assert split.info.form == "messages"


def test_damaged_and_foreign_datasets(plain, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(plain / "dataset", copy)
    with (copy / "train-00000.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataLoss, match="has 100 bytes instead of"):
        Split(copy, "train")
    (copy / "train-00000.bin").unlink()
    with pytest.raises(DataLoss, match="is missing"):
        Split(copy, "train")
    (copy / "dataset.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InvalidArgument, match="format 99"):
        Split(copy, "train")
    with pytest.raises(InvalidArgument, match=r"no dataset\.json"):
        read_info(tmp_path)
    with pytest.raises(InvalidArgument, match=r"no tokenizer\.json"):
        tokenize_corpus(
            plain / "corpus", tmp_path, tmp_path / "o", tokenizer_ref="", tokenizer_digest=""
        )


@pytest.mark.parametrize(
    ("version", "documents", "told", "form"),
    [
        (1, trainings.texts, "clm", "text"),
        (2, trainings.texts, "clm", "text"),
        (2, trainings.chats, "sft", "messages"),
        (2, trainings.pairs, "pairs", "pairs"),
    ],
)
def test_a_dataset_that_tells_its_form_by_an_objective_is_read(
    version, documents, told, form, tmp_path
):
    """As versions before format 3 wrote it."""
    dataset = trainings.dataset(tmp_path, documents(30))
    now = Split(dataset, "train")
    assert now.info.form == form
    info = json.loads((dataset / "dataset.json").read_text())
    assert "objective" not in info
    del info["form"]
    before = {**info, "objective": told, "format": version}
    (dataset / "dataset.json").write_text(json.dumps(before))
    then = Split(dataset, "train")
    assert then.info.form == form
    assert then.lengths().tolist() == now.lengths().tolist()
    for one, other in zip(then.document(0), now.document(0), strict=True):
        assert one.tolist() == other.tolist()


def test_masks_of_format_1_are_not_read(tmp_path):
    dataset = trainings.dataset(tmp_path, trainings.chats(30))
    info = json.loads((dataset / "dataset.json").read_text())
    del info["form"]
    (dataset / "dataset.json").write_text(json.dumps({**info, "objective": "sft", "format": 1}))
    with pytest.raises(InvalidArgument, match="format 1 and form 'messages' is not read"):
        read_info(dataset)


def test_wide_ids_survive(tmp_path):
    writer = SplitWriter(tmp_path, "train", "<u4", masked=False, limit=10)
    writer.add([70_000, 5], 3)
    writer.close()
    assert np.fromfile(tmp_path / "train-00000.bin", "<u4").tolist() == [70_000, 5]
