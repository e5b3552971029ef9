"""Conversations to ids as the tokenizer stage makes them, the sandbox's function in this process;
and small tokenizers with special tokens of one's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.tokenizer import sandbox
from plinth.tokenizer.codec import Codec, StandIns
from plinth.tokenizer.prompts import prompts
from plinth.tokenizer.templates import Conversation, Rendered
from plinth.tokenizer.turn_ends import turn_ends
from plinth.trainer.exchanges import Turn
from plinth.trainer.rendering import Renderer as TrainersRenderer

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


class TokenizerInProcess:
    """What trainer and reward ask of the tokenizer stage, for one tokenizer's folder, in a loop of
    a thread of its own."""

    def __init__(self, folder: Path, template: str | None = None) -> None:
        """`template`: in place of the folder's own."""
        self.codec = Codec(folder)
        self._render = InProcess(self.codec, template)
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()

    def renderer(self) -> TrainersRenderer:
        """The trainer's, whatever name a tokenizer is asked for by."""
        return TrainersRenderer(self._apply, self._loop)

    async def ApplyChatTemplates(
        self, request: pb.ApplyChatTemplatesRequest, timeout: float | None = None
    ) -> pb.ApplyChatTemplatesResponse:
        asked = [
            Conversation(
                [{"role": m.role, "content": m.content} for m in one.messages],
                one.add_generation_prompt,
            )
            for one in request.conversations
        ]
        made = await prompts(self.codec, asked, self._render)
        return pb.ApplyChatTemplatesResponse(
            sequences=[pb.TokenIds(ids=self.codec.encode_prompt(one)) for one in made],
            stop_token_ids=await turn_ends(self.codec, self._render),
        )

    async def _apply(self, _: str, turns: Sequence[Turn]) -> tuple[list[list[int]], list[int]]:
        conversations = [
            pb.Conversation(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=open_turn,
            )
            for messages, open_turn in turns
        ]
        request = pb.ApplyChatTemplatesRequest(conversations=conversations)
        answer = await self.ApplyChatTemplates(request)
        return [list(one.ids) for one in answer.sequences], list(answer.stop_token_ids)
