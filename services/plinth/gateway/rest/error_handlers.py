"""What goes wrong in a REST request, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from plinth.shared.errors import Internal, PlinthError, plain, to_openai_body
from plinth.shared.identity import current_request_id


def add_error_handlers(app: FastAPI) -> None:
    """Every exception becomes an answer with a body of OpenAI's shape."""
    app.add_exception_handler(PlinthError, _on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_error)


def body_of(error: BaseException) -> dict[str, Any]:
    """OpenAI's body; anything but a PlinthError says nothing but where the log has it."""
    if not isinstance(error, PlinthError):
        where = f"the server's log has it under request id {current_request_id()}"
        error = Internal(f"internal error; {where}")
    return to_openai_body(error)


def answer_to(error: BaseException) -> Response:
    """The whole answer to a request that ends in `error`."""
    headers = {}
    status = 500
    if isinstance(error, PlinthError):
        status = error.http
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), status, headers)


async def _on_error(_request: Request, error: Exception) -> Response:
    return answer_to(error)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = plain(f"{error.detail}: {request.method} {path[:200]}")
    if error.status_code == 404 and len(path) > 1 and path.endswith("/"):
        message += "; the API's paths have no slash at their end"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": body}, error.status_code, error.headers)
