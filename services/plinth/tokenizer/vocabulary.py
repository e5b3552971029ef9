"""A byte-level BPE vocabulary from a corpus: streamed, deterministic, idempotent.

A corpus is a folder with `train/documents-*.jsonl` ({"text": …} or {"messages": […]}), as the
corpus artifact has it, or any folder with such files at its top. Digits are split one by one, so
that numbers are spelled alike wherever they stand. The result opens in transformers with the same
ids. Knows no store and no gRPC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from plinth.shared.errors import InvalidArgument
from plinth.shared.step_versions import STEP_VERSIONS

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCABULARY, MAX_VOCABULARY, MAX_SPECIAL = 260, 200_000, 256
# A merge seen once is no pattern.
MIN_FREQUENCY = 2
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class VocabularySpec:
    """What to train. Checked when made; raises InvalidArgument naming the field."""

    vocab_size: int
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    chat_template: str = CHATML

    def __post_init__(self) -> None:
        if not MIN_VOCABULARY <= self.vocab_size <= MAX_VOCABULARY:
            raise InvalidArgument(
                f"vocab_size is {self.vocab_size}; {MIN_VOCABULARY} to {MAX_VOCABULARY:,} work",
                field="vocab_size",
            )
        special = self.special_tokens
        if len(special) > MAX_SPECIAL or len(set(special)) != len(special) or not all(special):
            raise InvalidArgument(
                f"special_tokens must be at most {MAX_SPECIAL} different, non-empty texts",
                field="special_tokens",
            )
        if any(len(token) == 1 for token in special):
            raise InvalidArgument(
                "a special token of one character would hide that character",
                field="special_tokens",
            )
        if self.vocab_size < 256 + len(special):
            raise InvalidArgument(
                f"vocab_size {self.vocab_size} has no room for 256 bytes and "
                f"{len(special)} special tokens",
                field="vocab_size",
            )

    def digest(self, corpus_digest: str) -> str:
        """The name of this training's inputs, "sha256:<hex>"."""
        inputs = {
            "version": STEP_VERSIONS["tokenizer"],
            "corpus": corpus_digest,
            "vocab_size": self.vocab_size,
            "special_tokens": list(self.special_tokens),
            "chat_template": self.chat_template,
        }
        text = json.dumps(inputs, sort_keys=True, ensure_ascii=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def corpus_files(folder: Path) -> list[Path]:
    """The corpus's training documents, in order. InvalidArgument when there are none."""
    train = folder / "train"
    files = sorted((train if train.is_dir() else folder).glob("documents-*.jsonl"))
    if not files:
        raise InvalidArgument(
            f"{folder} holds no train/documents-*.jsonl, so it is no corpus", field="corpus"
        )
    return files


def files_digest(files: Sequence[Path]) -> str:
    """sha256 over name and content of the files."""
    root = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        root.update(f"{path.name}\0{content}\n".encode())
    return f"sha256:{root.hexdigest()}"


def texts(files: Sequence[Path], progress: Progress) -> Iterator[str]:
    """Each document's text, one line of one file at a time; `progress` gets the bytes read."""
    read = 0
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                read += len(line)
                if line.strip():
                    yield from _document(line, f"{path.name}:{number}")
                progress(read)


def _document(line: bytes, where: str) -> Iterator[str]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise InvalidArgument(f"{where}: not valid JSON ({error})", field="corpus") from error
    text = document.get("text") if isinstance(document, dict) else None
    messages = document.get("messages") if isinstance(document, dict) else None
    if isinstance(text, str):
        yield text
    elif isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
        yield from (str(message.get("content", "")) for message in messages)
    else:
        raise InvalidArgument(
            f'{where}: a document is {{"text": …}} or {{"messages": […]}}', field="corpus"
        )


def train(files: Sequence[Path], spec: VocabularySpec, progress: Progress) -> Tokenizer:
    """The trained tokenizer, of exactly `spec.vocab_size` tokens.

    InvalidArgument when the corpus is empty, or supports fewer: it says how many it does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in spec.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    seen = [0]

    def count(read: int) -> None:
        seen[0] = read
        progress(read)

    tokenizer.train_from_iterator(texts(files, count), trainer)
    if seen[0] == 0:
        raise InvalidArgument("the corpus is empty", field="corpus")
    made = tokenizer.get_vocab_size(with_added_tokens=True)
    if made != spec.vocab_size:
        raise InvalidArgument(
            f"vocab_size is {spec.vocab_size:,}, but this corpus supports {made:,} tokens at most; "
            "ask for fewer or give more text",
            reason="VOCABULARY_TOO_LARGE",
            field="vocab_size",
            metadata={"supported": str(made)},
        )
    return tokenizer


def save(tokenizer: Tokenizer, spec: VocabularySpec, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": spec.chat_template,
        **_roles(spec.special_tokens),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _roles(special: Sequence[str]) -> dict[str, str]:
    """Which special token begins and pads a sequence, and which ends an answer."""
    roles: dict[str, str] = {}
    if "<|endoftext|>" in special:
        roles |= {"bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    for token in ("<|im_end|>", "<|endoftext|>"):
        if token in special:
            return roles | {"eos_token": token}
    return roles
