"""Whether a draft model reads and writes the tokens of the model that it drafts for."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from plinth.models.config import ModelConfig
from plinth.shared.errors import InvalidArgument

_FILE = "tokenizer.json"


def check_draft(
    said: str, draft: Path, model: Path, config: ModelConfig, model_config: ModelConfig
) -> None:
    """InvalidArgument unless each id that both tokenizers have is the same token. Their families
    may differ, and so may how many embeddings either has beyond its tokens (Qwen's have). Where a
    folder has no tokenizer, the sizes must be equal.

    said: how the draft was asked for. draft, model: folders.
    """
    theirs, ours = _tokens(draft), _tokens(model)
    if not (theirs and ours):
        if config.vocab_size != model_config.vocab_size:
            raise InvalidArgument(
                f"speculation {said!r}: the draft's vocabulary has {config.vocab_size} tokens, the "
                f"model's {model_config.vocab_size}",
                field="speculation",
            )
        return
    other = sorted(id_ for id_ in theirs.keys() & ours.keys() if theirs[id_] != ours[id_])
    if other:
        told = f"id {other[0]} is {theirs[other[0]]!r:.80} there and {ours[other[0]]!r:.80} here"
        raise InvalidArgument(
            f"speculation {said!r}: the draft's vocabulary is not the model's: {told}, one "
            f"of {len(other)} that differ; take a draft with the model's tokenizer",
            field="speculation",
        )


def _tokens(folder: Path) -> dict[int, str]:
    """The tokenizer's tokens by id; none without a tokenizer."""
    path = folder / _FILE
    if not path.is_file():
        return {}
    vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    return {id_: token for token, id_ in vocabulary.items()}
