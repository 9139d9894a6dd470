"""The live page of a run: a server on this machine alone that reads the run's files and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

import densekd
from densekd.errors import UserError
from densekd.report.page import MARK, environment, source

HOST = "127.0.0.1"
SECONDS = 3  # between two questions of the page
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class State:
    """What the page shows now.

    Attributes:
        name: of the run.
        state: one line: how far it is.
        body: HTML of everything else, escaped already.
    """

    name: str
    state: str
    body: str


def body(values: dict[str, Any]) -> str:
    """HTML of the sections that need no network's answer, from `densekd.report.page.common`."""
    made = environment()
    given = {"remarks": [], "report_command": "", **values}
    return "".join(made.get_template(name).render(given) for name in ("runs.html", "settings.html"))


def page(state: State) -> str:
    """The whole page as it is first sent."""
    return (
        environment()
        .get_template("live.html")
        .render(
            name=state.name,
            state=state.state,
            body=Markup(state.body),
            seconds=SECONDS,
            mark=Markup(MARK),
            version=densekd.__version__,
            css=Markup(source("page.css")),
            js=Markup(source("page.js")),
            live=Markup(source("live.js")),
        )
    )


def data(state: State, known: str) -> dict[str, Any]:
    """The answer to one question of the page: ``body`` is None where the page has this `known` version."""
    version = hashlib.blake2b(state.body.encode(), digest_size=8).hexdigest()
    return {
        "state": state.state,
        "version": version,
        "body": None if version == known else state.body,
    }


def make_server(read: Callable[[], State], port: int) -> ThreadingHTTPServer:
    """A server of the page at 127.0.0.1; `serve_forever` starts it.

    It knows two addresses, the page and its data, and takes no path of a file from anybody. It answers only where the
    browser asks for this machine by name, so that no other site's page can read it.

    Args:
        read: the state now.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version = "densekd"
        sys_version = ""

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self._send(403, "text/plain", "densekd watch answers on 127.0.0.1 alone\n")
                return
            asked = urlsplit(self.path)
            if asked.path not in ("/", "/data.json"):
                self._send(404, "text/plain", "there is nothing else here\n")
                return
            broken = ""
            try:
                state = read()
            except (UserError, OSError, ValueError) as error:  # a file is being written, or is gone
                broken = f"The run cannot be read now: {error}"
                state = State("densekd watch", broken, "")
            if asked.path == "/":
                self._send(200, "text/html", page(state))
                return
            known = parse_qs(asked.query).get("version", [""])[0]
            answer = data(state, known)
            if broken:  # what the page shows is worth more than nothing
                answer = {**answer, "body": None}
            self._send(200, "application/json", json.dumps(answer))

        def _send(self, status: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is the user's."""

    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected 0 to 65535; 0 takes a free one")
    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"--port {port}: {error.strerror or error}; give another, or --port 0 for a free one"
        ) from error
