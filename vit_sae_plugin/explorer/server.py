"""The page's server: only for this machine unless it is told otherwise, and as closed as can be.

Gradio offers much more than this page uses: uploads that are kept in a folder, files by their path,
a proxy, an API. All of that is refused in front of it, by `Gate`, which lets through the requests
that the page makes and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from vit_sae_plugin.explorer.actions import FIELDS
from vit_sae_plugin.explorer.explorer import Explorer
from vit_sae_plugin.explorer.page import build_page, import_gradio, page_file
from vit_sae_plugin.explorer.visit import MAX_UPLOAD_BYTES, Visits

FIRST_PORT, _N_PORTS = 7860, 20
_SECONDS_TO_END = 5.0
_SHORT_BODY_BYTES = 2**16
MAX_BODY_BYTES = MAX_UPLOAD_BYTES * 4 // 3 + 2**20
"""Largest request: a picture in base 64, and a little."""

_READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/[\w./@+-]+"
    r"|/gradio_api/(info|startup-events|theme\.css|app_id|queue/data|heartbeat/\w+)"
)
_SENT = re.compile(r"/gradio_api/(queue/join|cancel|reset)")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What a browser may fetch for this page: nothing from anywhere else."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """Lets through the requests that the page makes, plain and of a bounded size (middleware).

    Args:
        app: what stands behind.
        hosts: names that the server may be called by, so that no other site can pass itself off
            as it; empty: any.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: tuple[str, ...] = ()) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _take_in_a_short_body(scope, receive)
            await _refuse(send, *refusal)
            return
        body = await _body(receive)
        if body is None:
            await _refuse(send, 413, f"too large; want at most {MAX_BODY_BYTES} bytes")
            return
        if body and not _is_plain(body):
            await _refuse(send, 400, "want texts and numbers; no files, no lists of lists")
            return
        given: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": body, "more_body": False}
        ]

        async def receive_again() -> MutableMapping[str, Any]:
            return given.pop() if given else await receive()

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive_again, send_with_policy)

    def _refusal(self, scope: _Scope) -> tuple[int, str] | None:
        if scope["type"] != "http":
            return 404, "not here"
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        host = headers.get("host", "")
        if self._hosts and re.sub(r":\d+$", "", host) not in self._hosts:
            return 400, "called by a name that isn't this server's"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "sent from another site's page"
        known = {"GET": _READ, "HEAD": _READ, "POST": _SENT}.get(scope["method"])
        path = scope["path"]
        if known is None or not known.fullmatch(path) or ".." in path:
            return 404, "not here"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, f"too large; want at most {MAX_BODY_BYTES} bytes"
        return None


async def _body(receive: _Receive) -> bytes | None:
    """The whole body of a request; None if it is too large."""
    parts, n_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        n_bytes += len(parts[-1])
        if n_bytes > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def _take_in_a_short_body(scope: _Scope, receive: _Receive) -> None:
    """Of a request that is refused: a system that has bytes left unread may drop the answer."""
    length = dict(scope.get("headers", ())).get(b"content-length", b"0")
    if length.isdigit() and 0 < int(length) <= _SHORT_BODY_BYTES:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_body(receive), timeout=1)


def _is_plain(body: bytes) -> bool:
    """Whether a request says only what the page says: texts and numbers, in one list and one table.

    Gradio takes any table that has a ``path``, whatever component it is for, to be a file on this
    machine, and may copy it.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said, dict):
        return False
    listed, table = said.pop("data", None), said.pop("event_data", None)
    if not isinstance(listed, list | None) or not isinstance(table, dict | None):
        return False
    values = [*said.values(), *(listed or ()), *(table or {}).values()]
    return FIELDS.issuperset(table or ()) and all(
        isinstance(value, str | int | float | None) for value in values
    )


async def _refuse(send: _Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{why}\n".encode()})


async def _end_what_is_left() -> None:
    """All tasks but this one, and what is called when tasks have ended (threads end by it)."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await _wait_a_little(left)


async def _wait_a_little(tasks: Collection[asyncio.Future[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=_SECONDS_TO_END)


def build_app(explorer: Explorer, hosts: tuple[str, ...] = ()) -> tuple[Any, Visits]:
    """The page as an ASGI application behind its gate, and the visits made on it."""
    gr = import_gradio()
    from fastapi import FastAPI

    page, visits = build_page(explorer)
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
    theme = gr.themes.Base(font=fonts, font_mono=("ui-monospace", "Menlo", "monospace"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
        css=page_file("page.css"),
    )
    return Gate(app, hosts), visits


def free_socket(host: str, port: int | None) -> socket.socket:
    """A socket to serve on: at this port, or at the first free one from 7860 on.

    Raises:
        ValueError: the port is taken, or the host isn't this machine's.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _N_PORTS) if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for one in ports:
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, one))
        except (OSError, OverflowError) as error:
            found.close()
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                continue
            raise ValueError(
                f"can't serve at {host}:{one} ({error}); want an address of this machine, such as "
                "127.0.0.1, and a port from 1024 to 65535"
            ) from None
        return found
    said = f"port {port} is" if port is not None else f"ports {ports[0]} to {ports[-1]} are"
    raise ValueError(f"{said} taken; choose another with --port")


def make_server(explorer: Explorer, host: str = "127.0.0.1") -> Any:
    """A server (uvicorn's) of the page, to be run on a socket: ``server.run([socket])``.

    Args:
        explorer: what it shows.
        host: where it is to listen. On this machine itself it answers only when it is called by
            one of this machine's own names.
    """
    import_gradio()
    import uvicorn

    own = ("127.0.0.1", "localhost", "[::1]")
    app, _ = build_app(explorer, own if host in ("127.0.0.1", "localhost", "::1") else ())

    class Server(uvicorn.Server):
        """Ends in time, whatever of the page doesn't."""

        def run(self, sockets: list[socket.socket] | None = None) -> None:
            # asyncio.run would wait for every task and thread, however long
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self.serve(sockets))
            finally:
                loop.run_until_complete(_end_what_is_left())
                loop.close()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # answers that are cut off, those of open tabs, are no errors
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await _wait_a_little([asyncio.ensure_future(super().shutdown(sockets))])

    return Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
