"""SentencePiece's BPE (Kudo & Richardson 2018) from the pieces and scores of a GGUF file.

It merges the pair whose piece has the highest score, the leftmost of several; `tokenizers` merges
by the rank of pairs. So every pair that makes a piece is listed, in the order of the pieces'
scores. Characters without a piece become their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "\u2581"


def sentencepiece_bpe(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    unknown: str | None,
    prefix: bool,
) -> Tokenizer:
    """prefix: a space is put before the first word, and taken away from decoded text."""
    ranked = {
        token: score
        for token, score, type_ in zip(tokens, scores, types, strict=True)
        if type_ == NORMAL
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=_merges(ranked),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), spaces] if prefix else [spaces]
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(ranked: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those of the highest score first."""
    in_order = sorted(ranked, key=lambda piece: -ranked[piece])
    return [pair for piece in in_order for pair in _pairs(piece, ranked)]


def _pairs(piece: str, ranked: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        left, right = piece[:cut], piece[cut:]
        if left in ranked and right in ranked:
            yield left, right
