"""`plinth chat`: talk to a served model on the terminal; the answer streams.

It is a client like any other: by default through the gRPC API of the stack in the data
directory, with `--url http://…` through REST. The key is PLINTH_API_KEY, or the stack's first.
"""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from plinth.shared.errors import FailedPrecondition, NotFound, PlinthError, Unavailable

if TYPE_CHECKING:
    from plinth.client import GatewayAddress
    from plinth.shared.settings import Settings

TIMEOUT_S = 600.0
HELP = "/clear starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer"
Messages = list[dict[str, str]]


class ChatClient(Protocol):
    """What the chat needs of a gateway, by REST or gRPC."""

    def models(self) -> list[str]: ...

    def answer(self, model: str, messages: Messages, sampling: dict[str, Any]) -> Iterator[str]: ...


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this, print the answer, and end.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A served model; default: the first.")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="PLINTH_URL",
            help="http://host:port for REST, host:port for gRPC; default: the stack in --data.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.")] = 1024,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Data directory.")] = None,
) -> None:
    """Chats with a served model."""
    from plinth.shared.settings import load_settings

    settings = load_settings(**({} if data is None else {"data_dir": data}))
    client = open_client(settings, url)
    name = _choose(client.models(), model)
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    if seed is not None:
        sampling["seed"] = seed
    opening: Messages = [] if system is None else [{"role": "system", "content": system}]
    if question is not None:
        _ask(client, name, [*opening, {"role": "user", "content": question}], sampling)
        return
    _converse(client, name, opening, sampling)


def open_client(settings: Settings, url: str | None) -> ChatClient:
    """The client that `url` names, or the gRPC API of the stack in the data directory."""
    from plinth.cli.gateway_access import api_key, gateway_address

    key = api_key(settings)
    if url is not None and url.startswith(("http://", "https://")):
        return RestChatClient(url.rstrip("/").removesuffix("/v1"), key)
    return GrpcChatClient(gateway_address(settings, url), key)


def _choose(served: list[str], wanted: str | None) -> str:
    if wanted is None:
        if not served:
            raise Unavailable("no model is served yet; `plinth status` shows what is coming up")
        return served[0]
    if wanted not in served:
        raise NotFound(f"no model {wanted!r} is served; there are: {', '.join(served) or 'none'}")
    return wanted


def _converse(client: ChatClient, model: str, opening: Messages, sampling: dict[str, Any]) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        typer.secho(f"{model}. {HELP}", dim=True, err=True)
    messages = list(opening)
    while True:
        try:
            line = input("\n> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                text = _ask(client, model, messages, sampling)
            except PlinthError as error:
                typer.secho(str(error), fg="red", err=True)
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": text})


def _ask(client: ChatClient, model: str, messages: Messages, sampling: dict[str, Any]) -> str:
    """Prints the answer as it comes; Ctrl-C ends it early. The whole of it."""
    parts: list[str] = []
    pieces = client.answer(model, messages, sampling)
    try:
        for piece in pieces:
            parts.append(piece)
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    sys.stdout.write("\n")
    return "".join(parts)


def printable(text: str) -> str:
    """Without control characters, which would let a model move the cursor or worse."""
    return "".join(
        c if c in "\n\t" or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0) else "\ufffd" for c in text
    )


class GrpcChatClient:
    """GenerationService."""

    def __init__(self, address: GatewayAddress, key: str) -> None:
        from plinth.client import Client

        self._plinth = Client(address, key)

    def models(self) -> list[str]:
        return [model.name.removeprefix("models/") for model in self._plinth.models.list_models()]

    def answer(self, model: str, messages: Messages, sampling: dict[str, Any]) -> Iterator[str]:
        from plinth.v1 import chat_pb2, generation_pb2, sampling_pb2

        pieces = self._plinth.generation.stream_chat(
            model,
            messages=[chat_pb2.ChatMessage(**message) for message in messages],
            options=generation_pb2.GenerationOptions(
                sampling=sampling_pb2.SamplingParams(**sampling)
            ),
            timeout=TIMEOUT_S,
        )
        with closing(pieces):
            for piece in pieces:
                yield piece.text


class RestChatClient:
    """/v1/models and /v1/chat/completions, with the standard library alone."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def models(self) -> list[str]:
        with self._errors(), self._open("/v1/models", None) as answer:
            return [model["id"] for model in json.load(answer)["data"]]

    def answer(self, model: str, messages: Messages, sampling: dict[str, Any]) -> Iterator[str]:
        body = {"model": model, "messages": messages, "stream": True, **sampling}
        with self._errors(), self._open("/v1/chat/completions", body) as answer:
            for line in answer:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Unavailable(event["error"]["message"])
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, raw, self._headers)  # noqa: S310
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                raise FailedPrecondition(_message(error)) from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What a connection, or what answers on its other side, can raise at any point."""
        try:
            yield
        except urllib.error.URLError as error:
            raise Unavailable(f"{self._url} does not answer: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise Unavailable(f"{self._url} does not answer as HTTP: {what}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"{self._url} does not answer as a gateway would") from error


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url} answered {error.code}"
