"""What goes wrong in a REST request, as OpenAI's clients read it."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from plinth.shared.errors import PlinthError, to_openai_body


def add_error_handlers(app: FastAPI) -> None:
    """Every exception becomes an answer with a body of OpenAI's shape."""
    app.add_exception_handler(PlinthError, _on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PlinthError)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.http == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(to_openai_body(error), error.http, headers)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _on_bug(_request: Request, error: Exception) -> Response:
    return JSONResponse(to_openai_body(error), 500)
