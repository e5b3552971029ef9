"""How byte-level BPE splits text before it merges, by llama.cpp's names (`tokenizer.ggml.pre`).

The names, the expressions and what goes with them are those of llama_vocab's load and
llm_tokenizer_bpe in its src/llama-vocab.cpp, with the expression of the original tokenizer.json
where llama.cpp adapted it for its own engine. An unknown name is an error: a wrong split gives
wrong ids without a sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split


@dataclass(frozen=True)
class Splitting:
    """One way to split.

    patterns: one after another; none: GPT-2's own. digits: each by itself before them. whole: a
    piece that is in the vocabulary is taken without merging, as tiktoken does. bos: text begins
    with it unless the file says otherwise. composed: characters are first composed (NFC), which
    the original tokenizers do; llama.cpp leaves it to its callers.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole: bool = False
    bos: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """As `tokenizers` has it, bytes as GPT-2's characters at its end."""
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.digits else []
        steps += [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=not self.patterns))
        return Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        """None where text stays as it is."""
        return normalizers.NFC() if self.composed else None


_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX, _SLASH = r"[^\r\n\p{L}\p{N}]?", _REST.replace(r"[\r\n]*", r"[\r\n/]*")
_TEKKEN = rf"{_PREFIX}{_UPPER}*{_LOWER}+|{_PREFIX}{_UPPER}+{_LOWER}*|\p{{N}}{_SLASH}"
_GPT4O = (
    rf"{_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_SLASH}"
)
# llama.cpp's way where a file names none: LLAMA_VOCAB_PRE_TYPE_DEFAULT.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

SPLITTINGS: Mapping[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2"), Splitting()),
    **dict.fromkeys(("olmo", "mpt"), Splitting(composed=True)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell"), Splitting(digits=True)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        Splitting((_LLAMA3,), whole=True, bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting((_LLAMA3,))),
    "qwen2": Splitting((_QWEN2,), composed=True),
    "deepseek-r1-qwen": Splitting((_QWEN2,)),
    "tekken": Splitting((_TEKKEN,), whole=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Splitting((_GPT4O,))),
    "default": Splitting(_DEFAULT),
}
