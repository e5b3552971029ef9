"""Conversations to ids as the tokenizer stage makes them, the sandbox's function in this process;
and small tokenizers with special tokens of one's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from plinth.tokenizer import sandbox
from plinth.tokenizer.codec import Codec, StandIns
from plinth.tokenizer.prompts import prompts
from plinth.tokenizer.templates import Conversation, Rendered

MAX_CHARS = 10**6
Messages = Sequence[dict[str, str]]


class InProcess:
    """Renders one codec's conversations; by its own template unless another is given."""

    def __init__(self, codec: Codec, template: str | None = None) -> None:
        self._codec = codec
        self._template = template if template is not None else codec.chat_template or ""

    async def __call__(
        self, asked: Sequence[Conversation], stand_ins: StandIns | None = None
    ) -> list[Rendered]:
        return [
            Rendered(
                **sandbox.rendered(
                    self._template,
                    variables=self._codec.token_names,
                    stand_ins=() if stand_ins is None else stand_ins.pairs,
                    conversation={
                        "messages": one.messages,
                        "add_generation_prompt": one.open_turn,
                        "max_chars": MAX_CHARS,
                    },
                )
            )
            for one in asked
        ]


def ids_of(
    codec: Codec, messages: Messages, *, open_turn: bool, template: str | None = None
) -> list[int]:
    """The prompt's ids."""
    conversation = Conversation(messages, open_turn)
    (made,) = asyncio.run(prompts(codec, [conversation], InProcess(codec, template)))
    return codec.encode_prompt(made)


def special_codec(folder: Path, special: Sequence[str], template: str, **config: object) -> Codec:
    """Byte-level, one id a byte, with `special` tokens; `config` is its tokenizer_config.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Codec(folder)
