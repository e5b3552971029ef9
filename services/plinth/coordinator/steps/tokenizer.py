"""Step "tokenizer": a vocabulary trained on a corpus artifact by the tokenizer stage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from plinth.coordinator.steps.contract import Input, Progress, StepOutcome, StepSpec, Tools, Work
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc as rpc
from plinth.shared.artifact_messages import reference_of
from plinth.shared.errors import Unavailable
from plinth.shared.rpc.watching import watch
from plinth.shared.source_roots import SourceRoots


class TokenizerSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {"corpus": frozenset({"corpus"})}

    kind: Literal["tokenizer"]
    corpus: Input
    vocab_size: int = Field(ge=260, le=200_000)
    special_tokens: tuple[str, ...] = Field(default=(), max_length=64)
    # Jinja; empty takes Plinth's default (ChatML).
    chat_template: str = Field(default="", max_length=20_000)

    def produces(self) -> str:
        return "tokenizer"


class TokenizerStep:
    spec: type[StepSpec] = TokenizerSpec
    pure = True

    def surroundings(
        self, spec: TokenizerSpec, run_id: str, roots: SourceRoots
    ) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, TokenizerSpec)
        request = pb.TrainRequest(
            corpus=work.inputs["corpus"].ref,
            name=work.output_name,
            vocab_size=spec.vocab_size,
            special_tokens=spec.special_tokens,
            chat_template=spec.chat_template,
        )
        stream = watch(
            tools.clients,
            "tokenizer",
            lambda channel: rpc.TokenizerServiceStub(channel).Train,
            request,
            principal=work.principal,
        )
        async with aclosing(stream) as messages:
            async for message in messages:
                if message.HasField("artifact"):
                    made = message.artifact
                    yield StepOutcome(reference_of(made), {"vocab_size": spec.vocab_size})
                    return
                total = message.bytes_total
                read = f"{message.bytes_read / 1e6:.1f} of {total / 1e6:.1f} MB read"
                yield Progress(message.bytes_read / total if total else 0.0, read if total else "")
        raise Unavailable("the tokenizer stage ended the training without a result")

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Nothing to do: the training ends with the call that asked for it."""
