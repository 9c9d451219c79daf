"""The server of rw_eval.py --serve: its app, and its life from the first request to the last."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from utils import distributed
from utils.evaluation.scoring import Scorer
from utils.evaluation.settings import TOKEN_VARIABLE, ScorerSettings
from utils.serving.endpoints import Endpoints
from utils.serving.gate import Gate
from utils.serving.queue import ClientGone, ModelError, QueueFull, ScoreQueue
from utils.serving.sockets import listen
from utils.settings import Stopped

KEEP_ALIVE = 120  # seconds; clients, who wait less for a next request, should be the ones to close


def serve(args: ScorerSettings, scorer: Scorer, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    Args:
        args: of rw_eval.py.
        scorer: the model.
        listener: the port (sockets.reserve).

    Raises:
        Stopped: a second Ctrl-C did not let it wait for the answers.
    """
    server = make_server(args, scorer)
    listen(listener)
    distributed.barrier()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    distributed.log(f"serving {args.model_name_or_path} at http://{host}:{port} (Ctrl-C ends it)")

    try:
        server.run(sockets=[listener])
    except Stopped as stop:  # uvicorn repeats the signal that ended it
        if server.force_exit:
            stop.saved = "some requests were not answered"
            raise
    distributed.log("stopped; all that was accepted is answered")


def make_server(args: ScorerSettings, scorer: Scorer) -> uvicorn.Server:
    """The server, which is still to be run; it writes nothing unless something goes wrong."""
    app = make_app(args, scorer)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
    )
    app.state.server = server = uvicorn.Server(config)
    return server


def make_app(args: ScorerSettings, scorer: Scorer) -> FastAPI:
    """The app, whose queue works while it lives."""
    queue = ScoreQueue(scorer, args.max_queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(queue.run())
        yield
        work.cancel()
        queue.close()

    app = FastAPI(title="Reward model", lifespan=lifespan)
    app.add_middleware(
        Gate,
        token=os.environ.get(TOKEN_VARIABLE),
        open_paths=("/health",),
        is_stopping=lambda: app.state.server.should_exit,
    )
    app.add_exception_handler(RequestValidationError, _answer_bad_request)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(QueueFull, _answer_queue_full)
    app.add_exception_handler(ModelError, _answer_model_error)
    app.add_exception_handler(ClientGone, _answer_nobody)

    endpoints = Endpoints(args, queue)
    for endpoint in (endpoints.score, endpoints.get_reward, endpoints.classify):
        app.post(f"/{endpoint.__name__}")(endpoint)
    app.get("/health")(endpoints.health)
    return app


def _answer_bad_request(request: Request, error: Exception) -> Response:
    """422: the first fault that pydantic found, and where, without a copy of the request."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"][1:])[:200]  # a name may be of any length
    message = fault["msg"].removeprefix("Value error, ")

    if fault["type"] == "json_invalid":
        message, place = f"the body is no JSON: {fault['ctx']['error']}, character {place}", ""
    elif fault["type"] in ("model_attributes_type", "missing") and not place:
        message = "expected a JSON object, sent with the header Content-Type: application/json"
    return _sentence(422, f"{place}: {message}" if place else message)


def _answer_http(request: Request, error: Exception) -> Response:
    """As it is; only that FastAPI has 400 for a body that is too deep or no UTF-8, not 422."""
    assert isinstance(error, HTTPException)
    status = 422 if error.status_code == 400 else error.status_code
    return _sentence(status, error.detail, error.headers)


def _answer_queue_full(request: Request, error: Exception) -> Response:
    return _sentence(429, str(error), {"Retry-After": "1"})


def _answer_model_error(request: Request, error: Exception) -> Response:
    return _sentence(500, str(error))


def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's word for a client that has gone


def _sentence(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """All errors have one form: what is wrong, in `detail`."""
    return JSONResponse({"detail": detail}, status, headers)
