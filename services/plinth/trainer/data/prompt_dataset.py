"""A set of prompts and a tokenizer make a dataset for policies: ids to go on from, with checks.

Of the form "prompts": a document is a prompt with the assistant's turn open, and none of it is
learned. `<split>.checks.jsonl` has, for the same document, the rules that its answers are held to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import Messages
from plinth.shared.prompt_set import Prompt, read_prompts
from plinth.shared.splits import SPLITS, Overlap
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.located import located
from plinth.trainer.data.shards import (
    SHARD_TOKENS,
    DatasetInfo,
    Split,
    SplitInfo,
    SplitWriter,
    token_dtype,
    write_info,
)
from plinth.trainer.data.tokenize import TOKENIZER_FILES, load_tokenizer

# Conversations to ids with the answer's turn open.
RenderPrompts = Callable[[Sequence[Messages]], list[list[int]]]


def tokenize_prompts(
    prompts: Path,
    tokenizer: Path,
    out: Path,
    *,
    tokenizer_ref: str,
    tokenizer_digest: str,
    render: RenderPrompts,
    stop_ids: Callable[[str], Sequence[int]] = lambda _: (),
) -> DatasetInfo:
    """Write a dataset to the new folder `out`. `stop_ids`: see `tokenize_corpus`.

    InvalidArgument: a split of the set is empty, or has a prompt of the other (SPLITS_OVERLAP).
    """
    encoder = load_tokenizer(tokenizer)
    out.mkdir(parents=True)
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
    info = DatasetInfo(
        form="prompts",
        tokenizer=tokenizer_ref,
        tokenizer_digest=tokenizer_digest,
        vocab_size=encoder.vocab_size,
        end_of_text_id=encoder.end_of_text_id,
        eos_id=encoder.eos_id,
        dtype=token_dtype(encoder.vocab_size),
        splits={},
    )
    overlap = Overlap("the set of prompts", FORMS["prompts"].split_by)
    for split in SPLITS:
        path = prompts / f"{split}.jsonl"
        found = list(read_prompts(path))
        for prompt in found:
            overlap.add(split, prompt.key, prompt.text)
        if not found:
            raise InvalidArgument(f"the prompts have none to {split}", field="prompts")
        with located(lambda number: f"{path}:{number + 1}"):  # noqa: B023
            info.splits[split] = _write(out, split, found, info.dtype, render)
    info.stop_ids = list(stop_ids(tokenizer_ref))
    write_info(out, info)
    return info


def _write(
    out: Path, split: str, prompts: Sequence[Prompt], dtype: str, render: RenderPrompts
) -> SplitInfo:
    rendered = render([(("user", prompt.text),) for prompt in prompts])
    with closing(SplitWriter(out, split, dtype, True, SHARD_TOKENS)) as writer:
        for prompt, ids in zip(prompts, rendered, strict=True):
            writer.add(ids, len(prompt.text.encode()), [0] * len(ids))
    lines = [json.dumps(list(prompt.checks), ensure_ascii=False) for prompt in prompts]
    (out / f"{split}.checks.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return writer.info


def checks_of(dataset: Path, name: str) -> dict[tuple[int, ...], str]:
    """JSON of the rules of each prompt of a split, by its ids; none for datasets of other forms."""
    path = dataset / f"{name}.checks.jsonl"
    if not path.is_file():
        return {}
    split = Split(dataset, name)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {
        tuple(split.document(number)[0].tolist()): line
        for number, line in enumerate(lines)
        if line != "[]"
    }
