"""KServe's Open Inference Protocol: served models as its clients see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.catalogue import ServedModel
from plinth.gateway.generation.session import Session
from plinth.gateway.openai.rendering import finish_word
from plinth.gateway.rest.bodies import beside
from plinth.gateway.services import tensors
from plinth.gateway.services.infer_requests import (
    FINISH,
    INPUTS,
    OUTPUTS,
    PARAMETERS,
    STREAM,
    TEXT,
    TOKENS,
    Asked,
    read,
)
from plinth.oip.v2 import open_inference_pb2 as pb
from plinth.oip.v2 import open_inference_pb2_grpc as rpc
from plinth.shared.errors import NotFound, PlinthError
from plinth.shared.identity import current_principal, current_request_id
from plinth.shared.rpc.server import GrpcService
from plinth.shared.version import VERSION

SERVICE = "inference.GRPCInferenceService"
NAME = "plinth"
FINAL = "triton_final_response"

# Of each text: it, or its next piece; why it ended, 0: it has not; tokens. And: nothing follows.
Pieces = tuple[list[str], list[int], list[int], bool]


class OpenInferenceServicer(rpc.GRPCInferenceServiceServicer):
    """The RPCs; see open_inference.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            SERVICE,
            lambda server: rpc.add_GRPCInferenceServiceServicer_to_server(self, server),
            unhurried=("ModelInfer",),
        )

    # -- health and metadata -------------------------------------------------------------------

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        try:
            await self._core.check_ready()
        except PlinthError:
            return pb.ServerReadyResponse(ready=False)
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        try:
            model = await self._model(request.name, request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.ready_shards > 0)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=VERSION)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        model = await self._model(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        once = (PARAMETERS, STREAM)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[_version(model.artifact)],
            platform=NAME,
            inputs=[
                tensor(name=name, datatype=datatype, shape=[1 if name in once else -1])
                for name, datatype in INPUTS.items()
            ],
            outputs=[
                tensor(name=name, datatype=datatype, shape=[-1])
                for name, datatype in OUTPUTS.items()
            ],
        )

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        if request.repository_name:
            raise NotFound(
                "there is one repository, which has no name; leave repository_name out",
                field="repository_name",
            )
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=model.name,
                    version=_version(model.artifact),
                    state="READY" if model.ready_shards else "UNAVAILABLE",
                    reason="" if model.ready_shards else "no shard of it is up",
                )
                for model in await self._core.catalogue.models()
                if model.ready_shards or not request.ready
            ]
        )

    # -- answers -------------------------------------------------------------------------------

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        async with aclosing(self._answer(request, streams=False)) as responses:
            return await anext(responses)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for request in request_iterator:
            try:
                async with aclosing(self._answer(request, streams=True)) as responses:
                    async for response in responses:
                        yield pb.ModelStreamInferResponse(infer_response=response)
            except PlinthError as error:
                failed = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
                yield pb.ModelStreamInferResponse(
                    error_message=error.message, infer_response=failed
                )

    async def _answer(
        self, request: pb.ModelInferRequest, *, streams: bool
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """Responses to one request: one, or one for each piece."""
        unknown = self._core.settings.gateway.unknown_fields
        asked = await beside(partial(read, request, unknown, streams=streams), request.ByteSize())
        await self._model(request.model_name, request.model_version, "model_")
        async with self._core.session(current_principal(), asked.asks) as session:
            if request.model_version not in ("", _version(session.revision)):
                raise _no_version(session.revision, request.model_version, "model_")
            answers = _pieces(session) if asked.pieces else _whole(session, len(asked.asks))
            async with aclosing(answers) as made:
                async for texts, finishes, counts, last in made:
                    response = self._response(request, session)
                    _add(response, asked, texts, finishes, counts)
                    if streams:
                        end = last and not (asked.pieces and asked.empty_final)
                        response.parameters[FINAL].bool_param = end
                    yield response
            if asked.pieces and asked.empty_final:
                response = self._response(request, session)
                response.parameters[FINAL].bool_param = True
                yield response

    def _response(self, request: pb.ModelInferRequest, session: Session) -> pb.ModelInferResponse:
        model = session.prepared[0].model
        response = pb.ModelInferResponse(
            model_name=model.name, model_version=_version(session.revision), id=request.id
        )
        response.parameters["revision"].string_param = session.revision
        response.parameters["weights_digest"].string_param = model.weights_digest
        response.parameters["response_id"].string_param = current_request_id()
        return response

    async def _model(self, name: str, version: str, prefix: str = "") -> ServedModel:
        """NotFound: it is not served, or in another version. prefix: of the fields that say so."""
        model = await self._core.catalogue.get(name, f"{prefix}name")
        if version and version != _version(model.artifact):
            raise _no_version(model.artifact, version, prefix)
        return model


async def _whole(session: Session, count: int) -> AsyncGenerator[Pieces, None]:
    """All of it, once."""
    texts: list[list[str]] = [[] for _ in range(count)]
    finishes, counts = [0] * count, [0] * count
    async with aclosing(session.events()) as events:
        async for index, event in events:
            texts[index].append(event.text)
            counts[index] += len(event.tokens)
            finishes[index] = event.finish or finishes[index]
    yield ["".join(parts) for parts in texts], finishes, counts, True


async def _pieces(session: Session) -> AsyncGenerator[Pieces, None]:
    """Each piece of the one answer that there is."""
    async with aclosing(session.events()) as events:
        async for _, event in events:
            yield [event.text], [event.finish], [len(event.tokens)], bool(event.finish)


def _add(
    response: pb.ModelInferResponse,
    asked: Asked,
    texts: Sequence[str],
    finishes: Sequence[int],
    counts: Sequence[int],
) -> None:
    elements: dict[str, Sequence[Any]] = {
        TEXT: [text.encode() for text in texts],
        FINISH: [(finish_word(finish) or "").encode() for finish in finishes],
        TOKENS: counts,
    }
    for name in asked.outputs:
        tensors.output(response, name, OUTPUTS[name], elements[name], raw=asked.raw)


def _version(artifact: str) -> str:
    """The 7 of "chat@7"."""
    return artifact.rpartition("@")[2]


def _no_version(artifact: str, version: str, prefix: str) -> NotFound:
    return NotFound(
        f"{prefix}version: {artifact} answers now, and no version {version[:64]!r}",
        reason="MODEL_NOT_FOUND",
        field=f"{prefix}version",
    )
