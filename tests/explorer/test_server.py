"""The page's server, asked as a browser does and as no browser would."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'vit-sae-plugin[app]'")

import httpx

from tests.explorer.conftest import N_SCENES, serving
from tests.explorer.test_visit import encoded
from vit_sae_plugin.explorer import server
from vit_sae_plugin.explorer.server import MAX_BODY_BYTES, free_socket

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


class Tab:
    """A browser's tab, without the browser."""

    def __init__(self, client: httpx.Client, name: str, query: str = ""):
        self.client, self.name = client, name
        self.dependencies = client.get("/config").json()["dependencies"]
        self.reply = self.ask("load", query=query)

    def ask(self, event: str, data: list | None = None, said=None, query: str = "") -> list | None:
        """What the page's event gives; None if it failed."""
        (at,) = [
            d["id"] for d in self.dependencies for target in d["targets"] if target[1] == event
        ][:1]
        sent = {"data": data or [], "fn_index": at, "session_hash": self.name, "event_data": said}
        joined = self.client.post(f"/gradio_api/queue/join?{query}", json=sent)
        assert joined.status_code == 200, joined.text
        stream = self.client.stream("GET", f"/gradio_api/queue/data?session_hash={self.name}")
        with stream as answer:
            for line in answer.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return message["output"].get("data") if message["success"] else None
        raise AssertionError("no answer")

    def number_of(self, event: str) -> int:
        """Gradio's number of the function that an event calls."""
        return next(d["id"] for d in self.dependencies if any(event in t for t in d["targets"]))

    def act(self, **said) -> str:
        """The query of the page after an action."""
        self.reply = self.ask("act", said=said)
        return json.loads(self.reply[5])["query"]


def test_the_page_is_served_and_fetches_from_no_other_place(client):
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "http" not in policy
    assert "*" not in policy
    fetched = re.findall(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']([^\"']*)", answer.text
    )
    assert fetched
    assert [place for place in fetched if "//" in place] == []
    elsewhere = re.findall(r"@import|url\((?!.data:)[^)]*\)", client.get("/theme.css").text)
    assert elsewhere == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=1"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=%2Fetc%2Fpasswd"),
        ("HEAD", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/run/begin"),
        ("POST", "/gradio_api/call/on_act"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd"),
        ("GET", "/static/../../../../etc/passwd"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/monitoring"),
        ("DELETE", "/"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(client, method, path):
    answer = client.request(method, path, files={"files": b"x"} if "upload" in path else None)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_other_sites_and_other_names_are_refused(client):
    join = "/gradio_api/queue/join"
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "127.0.0.1.evil.example:80"}).status_code == 400
    assert client.post(join, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(join, headers={"origin": "null"}).status_code == 403
    assert client.post(join, json={}, headers={"origin": str(client.base_url)}).status_code == 422


def answer_to(client: httpx.Client, *pieces: bytes) -> bytes:
    """The first line of the answer to a request that is written by hand."""
    with socket.create_connection((client.base_url.host, client.base_url.port), 30) as connection:
        with suppress(ConnectionError):  # it may hang up in the middle
            for piece in pieces:
                connection.sendall(piece)
        return connection.makefile("rb").readline()


def test_a_request_that_is_too_large_is_refused_however_it_comes(client):
    head = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\n"
    said = head + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
    assert b" 413 " in answer_to(client, said)
    piece = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    pieces = [piece] * (MAX_BODY_BYTES // 2**20 + 1)
    assert b" 413 " in answer_to(client, head + b"Transfer-Encoding: chunked\r\n\r\n", *pieces)


def test_two_tabs_share_no_state(client):
    first, second = Tab(client, "firsttab"), Tab(client, "secondtab")
    assert first.act(kind="open", index=3) == "image=3"
    assert second.act(kind="factor", latent=5, factor=0) == "image=0&change=5x0"
    assert first.act(kind="color", latent=2) == "image=3&show=2"
    assert second.act(kind="undo") == "image=0"


def test_a_link_opens_what_it_says(client):
    tab = Tab(client, "linked", "image=7&change=3x0,4x2&rank=answer&patch=1-2")
    assert json.loads(tab.reply[5])["query"] == "image=7&rank=answer&patch=1-2&change=3x0,4x2"
    assert "Undo 2 changes" in tab.reply[2]
    wrong = Tab(client, "wrong", f"image={N_SCENES}")
    assert f"the image is {N_SCENES}; want 0 to {N_SCENES - 1}" in wrong.reply[4]


@pytest.mark.parametrize(
    "forged",
    [
        {"data": [FILE, "shapes"]},
        {"data": [[FILE], "shapes"]},
        {"data": ["red", {"a": [FILE]}]},
        {"data": FILE},
        {"event_data": {"kind": "upload", "content": FILE}},
        {"event_data": [FILE]},
        {"event_data": {"path": "/etc/passwd"}},
        {"trigger_id": FILE},
        [FILE],
        "FILE",
        b"no JSON",
        b"[" * 100_000,
    ],
    ids=str,
)
def test_forged_files_never_reach_gradio(client, forged):
    tab = Tab(client, "forger")
    at = tab.number_of("submit")
    whole = {"data": ["red star, blue ring", "shapes"], "fn_index": at, "session_hash": "forger"}
    if isinstance(forged, dict):
        forged = {**whole, **forged}
    content = forged if isinstance(forged, bytes) else json.dumps(forged).encode()
    headers = {"content-type": "application/json"}
    answer = client.post("/gradio_api/queue/join", content=content, headers=headers)
    assert answer.status_code == 400
    assert tab.act(kind="undo") == "image=0"


def test_what_is_wrong_in_an_action_is_told_on_the_page(client):
    tab = Tab(client, "wrong")
    for said in (
        {"kind": "upload", "content": "/etc/passwd"},
        {"kind": "open", "index": "/etc/passwd"},
        {"kind": "find", "words": "/etc/passwd"},
        {"kind": "/etc/passwd"},
    ):
        assert tab.act(**said) == "image=0"
        assert 'class="notice"' in tab.reply[4]
    reply = tab.ask("submit", ["red star, blue ring", "/etc/passwd"])
    assert "want exactly one" in reply[4]
    assert "root:" not in json.dumps(reply)


def test_nothing_is_kept_on_disk(client, shapes_explorer):
    tab = Tab(client, "dropper")
    picture = shapes_explorer.images.record(9).load()
    assert tab.act(kind="upload", content=encoded(picture)) == ""
    assert "your picture" in tab.reply[0]
    kept = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert kept == []


def test_a_port_that_is_taken_is_said(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(ValueError, match=f"port {port} is taken; choose another with --port"):
        free_socket("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"can't serve at 203\.0\.113\.1:0"):
        free_socket("203.0.113.1", 0)


def test_gradio_is_told_to_report_nothing(shapes_explorer):
    import gradio

    from vit_sae_plugin.explorer.page import build_page

    page, _ = build_page(shapes_explorer)
    assert page.analytics_enabled is False
    assert gradio.analytics.analytics_enabled() is False


async def _waits():
    await asyncio.Event().wait()


async def _waits_though_it_is_cancelled():
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@pytest.mark.parametrize("wait", [_waits, _waits_though_it_is_cancelled, "in a thread"])
def test_the_server_ends_though_the_page_does_not(wait, shapes_explorer, monkeypatch):
    end = threading.Event()
    waiting = (lambda: asyncio.to_thread(end.wait)) if wait == "in a thread" else wait

    async def never_ends(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        await waiting()

    monkeypatch.setattr(server, "build_app", lambda explorer, names: (never_ends, None))
    monkeypatch.setattr(server, "_SECONDS_TO_END", 0.3)
    try:
        with serving(shapes_explorer) as address, pytest.raises(httpx.ReadTimeout):
            httpx.get(address, timeout=0.2)  # an answer is under way when the server ends
    finally:
        end.set()


def test_ctrl_c_ends_the_process(tmp_path):
    """While an answer is under way, and though a thread waits for work."""
    script = tmp_path / "serve.py"
    script.write_text(SERVES_AND_IS_INTERRUPTED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "an answer: 404" in done.stdout
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode != 0


SERVES_AND_IS_INTERRUPTED = """
import asyncio, contextlib, signal, threading, urllib.error, urllib.request

import anyio.to_thread

from vit_sae_plugin.explorer import server


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    await anyio.to_thread.run_sync(int)
    if scope["path"] == "/waits":
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(address):
    try:
        urllib.request.urlopen(address)
    except urllib.error.HTTPError as error:
        print("an answer:", error.code, flush=True)
    with contextlib.suppress(Exception):  # it is cut off
        urllib.request.urlopen(address + "/waits")


signal.signal(signal.SIGINT, signal.default_int_handler)
server.build_app = lambda explorer, names: (app, None)
with server.free_socket("127.0.0.1", 0) as socket:
    socket.listen()
    address = "http://%s:%s" % socket.getsockname()
    threading.Thread(target=ask, args=[address], daemon=True).start()
    server.make_server(None).run([socket])
"""
