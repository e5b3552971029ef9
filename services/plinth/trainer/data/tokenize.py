"""A corpus and a tokenizer make a dataset.

Text is plain, whatever it spells: no document holds a special token (`<|endoftext|>` in prose is
prose). An end-of-text id follows each document of a corpus of text.
Chat messages are rendered by the tokenizer stage (it owns the templates, in a sandbox): the
caller gives a function that maps conversations to ids and masks, so this module knows no network.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from plinth.shared.errors import InvalidArgument
from plinth.shared.plain_text import (
    PlainText,
    open_tokenizer,
    read_description,
    read_object,
    token_content,
)
from plinth.shared.splits import SPLITS, Overlap
from plinth.trainer.data.corpus import read_split
from plinth.trainer.data.documents import BOUNDARY, Document
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.located import located
from plinth.trainer.data.shards import (
    SHARD_TOKENS,
    DatasetInfo,
    SplitWriter,
    token_dtype,
    write_info,
)

Messages = tuple[tuple[str, str], ...]
# Conversations to (ids, mask): mask 1 for the assistant's answers, as `shared.answer_spans` has it.
Render = Callable[[Sequence[Messages]], list[tuple[list[int], list[int]]]]
StopIds = Callable[[], Sequence[int]]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class DocumentEncoder:
    """A tokenizer as datasets use it. end_of_text_id separates documents, eos_id ends an answer;
    they come from here and never from a document's text."""

    plain: PlainText
    vocab_size: int
    end_of_text_id: int
    eos_id: int


def tokenize_corpus(
    corpus: Path,
    tokenizer: Path,
    out: Path,
    *,
    tokenizer_ref: str,
    tokenizer_digest: str,
    corpus_ref: str = "",
    render: Render | None = None,
    stop_ids: Callable[[str], Sequence[int]] = lambda _: (),
    shard_tokens: int = SHARD_TOKENS,
    on_bytes: Callable[[int], None] = lambda _: None,
    where: Callable[[Document], str] = lambda document: document.where,
) -> DatasetInfo:
    """Write a dataset to the new folder `out`. For chat messages and pairs: `render`, and
    `stop_ids`, which gives a tokenizer's ends of an answer once it was rendered by. `where` tells
    people of a document that can't be rendered.

    InvalidArgument: among others SPLITS_OVERLAP, where a prompt (of plain text: the text) is both
    in what is learned from and in what is held out. `corpus_ref` names the corpus there.
    """
    encoder = load_tokenizer(tokenizer)
    first = next(read_split(corpus, "train"), None)
    if first is None:
        raise InvalidArgument(f"corpus {corpus} has no training documents", field="corpus")
    masked = first.form != "text"
    if masked and render is None:
        raise InvalidArgument("chat messages need a tokenizer with a chat template")
    out.mkdir(parents=True)
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:  # a model artifact holds a tokenizer too, beside its weights
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
    info = DatasetInfo(
        form=first.form,
        tokenizer=tokenizer_ref,
        tokenizer_digest=tokenizer_digest,
        vocab_size=encoder.vocab_size,
        end_of_text_id=encoder.end_of_text_id,
        eos_id=encoder.eos_id,
        dtype=token_dtype(encoder.vocab_size),
        splits={},
    )
    done, overlap = 0, Overlap(f"corpus {corpus_ref or corpus}", FORMS[first.form].split_by)
    for split in SPLITS:
        with closing(SplitWriter(out, split, info.dtype, masked, shard_tokens)) as writer:
            for batch in _batches(_apart(read_split(corpus, split), split, overlap)):
                if masked:
                    assert render is not None
                    add, each = (_add_pairs, 2) if first.form == "pairs" else (_add_chats, 1)
                    with located(lambda number: where(batch[number // each])):  # noqa: B023
                        add(writer, batch, render, lambda: stop_ids(tokenizer_ref))
                else:
                    _add_texts(writer, batch, encoder)
                done += sum(d.size for d in batch)
                on_bytes(done)
        info.splits[split] = writer.info
    info.stop_ids = list(stop_ids(tokenizer_ref)) if masked else [encoder.end_of_text_id]
    write_info(out, info)
    return info


def _apart(documents: Iterator[Document], split: str, overlap: Overlap) -> Iterator[Document]:
    for document in documents:
        overlap.add(split, document.prompt_key(), document.opening_words)
        yield document


def _add_texts(writer: SplitWriter, batch: list[Document], encoder: DocumentEncoder) -> None:
    sequences = encoder.plain.encode_batch([d.text for d in batch])
    for document, ids in zip(batch, sequences, strict=True):
        writer.add([*ids, encoder.end_of_text_id], document.size)


def _add_chats(
    writer: SplitWriter, batch: list[Document], render: Render, stop_ids: StopIds
) -> None:
    rendered = render([d.messages for d in batch])
    for document, chat in zip(batch, rendered, strict=True):
        ids, mask = _without_end(*chat, stop_ids()) if document.cut_off else chat
        answers = sum(len(c.encode()) for role, c in document.messages if role == "assistant")
        writer.add(ids, answers, mask)


def _add_pairs(
    writer: SplitWriter, batch: list[Document], render: Render, stop_ids: StopIds
) -> None:
    """Two documents each, the preferred one first; the mask is of the last answer only."""
    both: list[tuple[Messages, bool]] = []
    for document in batch:
        assert document.rejected is not None
        rejected = (*document.messages[:-1], ("assistant", document.rejected))
        both += [(document.messages, document.cut_off), (rejected, document.rejected_cut_off)]
    rendered = render([messages for messages, _ in both])
    for (messages, cut_off), chat in zip(both, rendered, strict=True):
        ids, mask = _without_end(*chat, stop_ids()) if cut_off else chat
        writer.add(ids, len(messages[-1][1].encode()), _last_run(mask))


def _without_end(
    ids: list[int], mask: list[int], stop_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Of a chat whose last answer was ended by its length: what was rendered ends with a token that
    nobody wrote."""
    return (ids[:-1], mask[:-1]) if ids[-1] in stop_ids else (ids, mask)


def _last_run(mask: list[int]) -> list[int]:
    """Ones of the last answer only."""
    end = len(mask) - mask[::-1].index(1) if 1 in mask else 0
    start = end
    while start and mask[start - 1]:
        start -= 1
    return [int(start <= i < end) for i in range(len(mask))]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Groups that are bounded in number and in bytes."""
    while group := list(islice(documents, 1)):
        size = group[0].size
        for document in islice(documents, _BATCH_DOCUMENTS - 1):
            group.append(document)
            size += document.size
            if size >= _BATCH_BYTES:
                break
        yield group


def load_tokenizer(folder: Path) -> DocumentEncoder:
    """InvalidArgument: `folder` has no tokenizer, or one without a token that ends a document."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidArgument(f"{folder} is not a tokenizer: it has no tokenizer.json")
    description = read_description(folder, also_special=[BOUNDARY])
    whole = open_tokenizer(description, str(path))
    config = folder / "tokenizer_config.json"
    name = token_content(read_object(config).get("eos_token")) if config.is_file() else None
    eos = whole.token_to_id(name) if name else None
    end = whole.token_to_id(BOUNDARY)
    end = eos if end is None else end
    if end is None:
        raise InvalidArgument(
            f"{path}: has neither {BOUNDARY} nor an eos_token, so documents cannot be separated"
        )
    return DocumentEncoder(
        PlainText(description, folder), whole.get_vocab_size(), end, end if eos is None else eos
    )
