"""What every request must pass before it is read: the token, and limits on its body."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 16 * 2**20  # bytes
BODY_SECONDS = 60  # that a client may take to send it
LINGER_SECONDS = 2  # for which a client that was answered too early may send nothing

CLOSE = {"Connection": "close"}


class Gate:
    """ASGI middleware: 401 without the token, 413 for a body too large, 408 for one too slow.

    Args:
        app: what stands behind it.
        token: that clients must send as `Authorization: Bearer TOKEN`; None: none.
        open_paths: for which no token is asked.
        is_stopping: whether this is the last answer on a connection, which then says so.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        open_paths: tuple[str, ...],
        is_stopping: Callable[[], bool],
    ):
        self.app, self.open_paths, self.is_stopping = app, open_paths, is_stopping
        self.expected = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        body = _Body(scope, receive)

        async def send_whole(message: Message) -> None:
            if message["type"] == "http.response.start" and self.is_stopping():
                MutableHeaders(scope=message).update(CLOSE)

            # A connection that is closed while its client sends loses the answer, too.
            ends = message["type"] == "http.response.body" and not message.get("more_body")
            if ends and not body.whole:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body"}
            await send(message)

        answer = self.app
        if not self._is_welcome(scope):
            headers = {**CLOSE, "WWW-Authenticate": "Bearer"}
            detail = "expected the header Authorization: Bearer TOKEN with the server's token"
            answer = JSONResponse({"detail": detail}, 401, headers)
        await answer(scope, body.receive, send_whole)

    def _is_welcome(self, scope: Scope) -> bool:
        if self.expected is None or scope["path"] in self.open_paths:
            return True
        scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(token, self.expected)


class _Body:
    """Hands on the body of a request as long as it keeps the limits.

    Raises:
        HTTPException: 413 or 408; the connection is closed behind it.
    """

    def __init__(self, scope: Scope, receive: Receive):
        self.next_message = receive
        self.announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
        self.read = 0
        self.whole = False
        self.deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        """The next message of the server, as ASGI has it."""
        if self.whole:  # what is left to come is that the client goes
            return await self.next_message()

        self._check_size(self.announced)
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._next()
        except TimeoutError:
            detail = f"the body did not arrive within {BODY_SECONDS} seconds"
            raise HTTPException(408, detail, CLOSE) from None

        self.read += len(message.get("body", b""))
        self._check_size(self.read)
        return message

    async def discard(self) -> None:
        """Read what is left, as long as the client sends it in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.deadline):
                while not self.whole:
                    async with asyncio.timeout(LINGER_SECONDS):
                        await self._next()

    async def _next(self) -> Message:
        message = await self.next_message()
        self.whole = not message.get("more_body", False)
        return message

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY:
            raise HTTPException(413, f"the body has more than {MAX_BODY:,} bytes", CLOSE)
