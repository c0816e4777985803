"""What goes wrong over HTTP, in OpenAI's shape. 4xx is the caller's, 503 says when to come again, 500 is a bug."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ftray.errors import FtrayError, InputError, RunError
from ftray.serve.asking import DeadlinePassed, EngineFull, EngineLost, UnknownAdapter
from ftray.serve.experiment.spec import Contradiction, OutOfRange, UnknownResponse
from ftray.serve.outcomes.async_outcomes import StoreLost

log = logging.getLogger(__name__)

LONGEST = 2000
"""Characters of a message."""
RETRY_SECONDS = 1.0
"""When to come again, where nobody knows better."""
UNKNOWN = {"unknown_adapter", "unknown_alias"}
"""Kinds of InputError that are 404."""
CONFLICTS = {"not_shippable", "no_previous", "dangling_alias", "lost_swap", "changed_adapter", "other_base"}
"""Kinds of errors that are 409: they lie in what there is, not in how it is asked for."""
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


class Problem(Exception):
    """An answer that is an error. It pickles: it crosses process borders."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`retry_after`: seconds; 429 and 503 always have one."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param
        self.retry_after = RETRY_SECONDS if retry_after is None and status in (429, 503) else retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.status, self.message, self.code, self.kind, self.param, self.retry_after)

    def body(self) -> dict[str, Any]:
        """Return the body, as OpenAI's API spells it."""
        message = self.message if len(self.message) <= LONGEST else f"{self.message[:LONGEST]} ..."
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self) -> Response:
        """Return it as a response."""
        return Response(
            spelled(self.body()), status_code=self.status, headers=self.headers(), media_type="application/json"
        )


def _rebuild(status: int, message: str, code: str, kind: str, param: str | None, retry_after: float | None) -> Problem:
    return Problem(status, message, code=code, kind=kind, param=param, retry_after=retry_after)


def spelled(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON in ASCII: whatever a request held can be written."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def unavailable(message: str, *, code: str, retry_after: float | None = None) -> Problem:
    """Return a 503: it is not the caller's fault, and will pass."""
    return Problem(503, message, code=code, kind="server_error", retry_after=retry_after)


def no_model(model: str) -> Problem:
    """Return the 404 of a model that there is not."""
    return Problem(
        404, f"There is no model {model!r}. GET /v1/models lists them.", code="model_not_found", param="model"
    )


def refused(message: str, *, param: str | None, code: str = "invalid_value") -> Problem:
    """Return the 400 of a parameter that cannot be as it is."""
    return Problem(400, message, code=code, param=param)


def problem_of(error: Exception) -> Problem | None:
    """Return what an error of the engine, the store or the registry is over HTTP; None for a bug."""
    match error:
        case Problem():
            return error
        case EngineFull():
            return Problem(
                429,
                "All slots are taken and the queue is full.",
                code="engine_full",
                kind="rate_limit_error",
                retry_after=error.retry_after_seconds,
            )
        case DeadlinePassed():
            return unavailable("The answer was not done within the deadline.", code="deadline_passed")
        case EngineLost():
            return unavailable("The engine went away while it answered.", code="engine_lost")
        case UnknownAdapter():
            return unavailable("The model is not loaded yet.", code="model_not_loaded")
        case UnknownResponse():
            return Problem(404, _text(error, "There is no such experiment, response or unit."), code="not_found")
        case Contradiction():
            return Problem(409, _text(error, "It is already there, with another content."), code="conflict")
        case OutOfRange():
            return Problem(422, _text(error, "The value is out of the metric's range."), code="out_of_range")
        case StoreLost():
            return unavailable("The store of outcomes does not answer.", code="store_lost")
        case InputError():
            status = 404 if error.kind in UNKNOWN else 409 if error.kind in CONFLICTS else 400
            return Problem(status, f"{error.message} {error.hint}".strip(), param=error.path, code=error.kind)
        case RunError() if error.kind in CONFLICTS:
            return Problem(409, error.message, code=error.kind)
        case RunError():
            return unavailable("The disk, the store or the registry cannot be reached.", code=error.kind)
    return None


def _text(error: Exception, otherwise: str) -> str:
    return str(error) or otherwise


def invalid(error: RequestValidationError) -> Problem:
    """Return the 400 of a request that is not as the document says: the deepest of what is wrong."""
    places = [(_place(one["loc"], error.body, str(one["type"])), one) for one in error.errors()]
    place, worst = max(places, key=lambda pair: len(pair[0]))
    param = _spelled_place(place)
    kind = str(worst["type"])
    if kind == "json_invalid":
        return refused("The body is not JSON.", param=None, code="invalid_json")
    if kind == "extra_forbidden":
        return refused(f"Unknown parameter: {param!r}.", param=param, code="unknown_parameter")
    if kind == "missing":
        what = f"Missing required parameter: {param!r}." if param else "The request needs a JSON object as its body."
        return refused(what, param=param, code="missing_required_parameter")
    said = str(worst["msg"]).removeprefix("Value error, ")
    code = kind if kind == "unsupported_parameter" else "invalid_value"
    return refused(f"Invalid value for {param!r}: {said}." if param else f"{said}.", param=param, code=code)


def _place(loc: Sequence[Any], body: Any, kind: str) -> tuple[str | int, ...]:
    """Return where in the request it is wrong: `loc` without pydantic's names for the branches of unions."""
    source, *rest = loc
    if source != "body":
        return tuple(rest)
    place: list[str | int] = []
    here = body
    for number, part in enumerate(rest):
        if _holds(here, part):
            here = here[part]
        elif kind != "missing" or number < len(rest) - 1:
            continue
        place.append(part)
    return tuple(place)


def _holds(here: Any, part: Any) -> bool:
    if isinstance(here, list):
        return isinstance(part, int) and 0 <= part < len(here)
    return isinstance(here, dict) and part in here


def _spelled_place(place: Sequence[str | int]) -> str | None:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")[:200] or None


def status_of(error: Exception) -> int:
    """Return the status that an error is answered with."""
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, RequestValidationError):
        return 400
    problem = problem_of(error)
    return problem.status if problem else 500


def install(app: FastAPI) -> None:
    """Let the application answer every error in this shape."""

    async def known(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        assert problem is not None
        if isinstance(error, RunError):
            log.error("%s %s: %s %s", request.method, request.url.path, error.message, error.hint)
        return problem.response()

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = CODES.get(error.status_code, "error")
        response = Problem(error.status_code, str(error.detail), code=code).response()
        response.headers.update(error.headers or {})
        return response

    async def not_valid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error).response()

    async def bug(request: Request, error: Exception) -> Response:
        log.error("a bug: %s %s", request.method, request.url.path, exc_info=error)
        return Problem(500, "The server has a bug here.", code="internal", kind="server_error").response()

    ours = (EngineFull, DeadlinePassed, EngineLost, UnknownAdapter, UnknownResponse, Contradiction, OutOfRange)
    for kind in (Problem, InputError, RunError, StoreLost, *ours):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, not_valid)
    app.add_exception_handler(FtrayError, bug)
    app.add_exception_handler(Exception, bug)
