"""The server of rw_eval.py --serve: its app, and its life from the first request to the last."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import FrameType

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


class Server(uvicorn.Server):
    """The first signal lets it answer what was accepted, a second Ctrl-C ends it at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by each signal."""
        super().handle_exit(sig, frame)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(args: ScorerSettings, scorer: Scorer, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    Args:
        args: of rw_eval.py.
        scorer: the model.
        listener: the port (sockets.reserve).
    """
    server = make_server(args, scorer)
    listen(listener)
    distributed.barrier()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    distributed.log(f"serving {args.model_name_or_path} at http://{host}:{port} (Ctrl-C ends it)")

    with suppress(Stopped):  # uvicorn repeats the signal that ended it
        server.run(sockets=[listener])
    distributed.log("stopped; all that was accepted is answered")


def make_server(args: ScorerSettings, scorer: Scorer) -> Server:
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
    app.state.server = server = Server(config)
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
    """422: what pydantic found first, and where, without a copy of the request."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    fault = faults[0]
    names = fault["loc"][1:]
    message = fault["msg"].removeprefix("Value error, ")

    if names and names[-1] == "str":  # a text, or something else that may stand in its place
        parent = fault["loc"][:-1]
        tried = [one for one in faults if one["loc"][: len(parent)] == parent]
        depth = max(len(one["loc"]) for one in tried)
        nearest = [one for one in tried if len(one["loc"]) == depth]
        names = parent[1:] + nearest[0]["loc"][len(parent) + 1 :]
        message = " or ".join(dict.fromkeys(one["msg"] for one in nearest))

    place = ".".join(map(str, names))[:200]  # a name may be of any length

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
