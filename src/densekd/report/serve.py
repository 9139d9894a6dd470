"""The page on which networks are tried: a server on this machine that takes an image and gives the answers to it.

An image is decoded in memory from the bytes of its request; no file is written and no name of a file is opened.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup

import densekd
from densekd.errors import UserError
from densekd.ops.names import printable
from densekd.report.page import environment, source

MOST_BYTES = 32_000_000  # of an image file
MOST_WAITING = 8  # questions; one is answered at a time
SIDES = (320, 512, 768, 1024, 1536, 2048, 3072, 4096)  # that the page offers for the longer side
SMALLEST_SIDE = 32
MENU = 24  # characters of a title in a menu
SHOWN_FORMATS = "PNG, JPEG, WebP, BMP, GIF, TIFF, PPM"
ACCEPTED = ".png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,.tiff,.ppm,.pgm"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# content, name, longest side, whether each network is asked once -> what the page draws
Answer = Callable[[bytes, str, int, bool], Mapping[str, Any]]


def check_packages() -> None:
    """UserError where the extra is missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"densekd serve needs {error.name}: pip install 'densekd[serve]'"
        ) from error


def page(
    models: Sequence[Mapping[str, Any]], *, place: str, devices: str, most_side: int, side: int
) -> str:
    """The whole page.

    Args:
        models: each has ``title``, ``facts`` (one line) and ``classes``, pairs of a name and a CSS colour.
        place: who can reach the page, as a sentence without its full stop.
        devices: on which the networks are.
        most_side: the longest side that may be asked for.
        side: that is chosen first.
    """
    return (
        environment()
        .get_template("serve.html")
        .render(
            title=joined([model["title"] for model in models]),
            models=[{**model, "short": shortened(model["title"])} for model in models],
            place=place,
            devices=devices,
            sides=sorted({*(s for s in SIDES if s < most_side), side, most_side}),
            chosen=side,
            most_bytes=MOST_BYTES,
            formats=SHOWN_FORMATS,
            accepted=ACCEPTED,
            version=densekd.__version__,
            css=Markup(source("page.css") + source("serve.css")),
            js=Markup(source("serve.js")),
        )
    )


def shortened(title: str) -> str:
    """For a menu, which cannot break a line: the beginning and the end."""
    return title if len(title) <= MENU else f"{title[: MENU // 2]}…{title[-MENU // 3 :]}"


def joined(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def is_local(host: str) -> bool:
    return host == "localhost" or _is_address(host, loopback=True)


def refused(host: str, origin: str | None, site: str | None, *, local: bool) -> str:
    """Why a request is not answered; "" for one of the page itself.

    A browser that another site has led here by a name of its own (DNS rebinding) sends that name as ``Host``; one that
    another site's page asks to send something says so by ``Origin`` and ``Sec-Fetch-Site``.

    Args:
        host, origin, site: the request's headers ``Host``, ``Origin`` and ``Sec-Fetch-Site``.
        local: only names of this machine count as the host; else any number of an address does.
    """
    name = urlsplit(f"//{host}").hostname or ""
    if not (is_local(name) or (not local and _is_address(name))):
        return (
            "densekd serve answers where the browser asks for 127.0.0.1 or localhost"
            if local
            else "densekd serve answers where the browser asks for this machine by its number, not by a name"
        )
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "densekd serve answers its own page alone"
    if site not in (None, "same-origin", "none"):
        return "densekd serve answers its own page alone"
    return ""


def _is_address(host: str, *, loopback: bool = False) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or not loopback


def make_app(text: str, answer: Answer, *, local: bool, most_side: int) -> Any:
    """The application of the page: ``GET /`` gives `text`, ``POST /answer`` the answers to the image in its body.

    All questions are answered by one thread, one after the other, so that networks do not fight for the cores, and
    times are true.

    Args:
        answer: is called with what `Answer` says; a UserError is what is wrong with the image.
        local: see `refused`.
        most_side: the longest side that may be asked for.
    """
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="networks")
    one_by_one = asyncio.Lock()
    waiting = 0

    def say(status: int, content: Mapping[str, Any]) -> Response:
        text = json.dumps(content, allow_nan=False)
        return Response(text, status, headers=HEADERS, media_type="application/json")

    def wrong(request: Request) -> Response | None:
        get = request.headers.get
        # A link on another page may lead here; it may not ask the networks.
        site = get("sec-fetch-site") if request.method == "POST" else None
        why = refused(get("host", ""), get("origin"), site, local=local)
        return say(403, {"error": why}) if why else None

    async def show(request: Request) -> Response:
        return wrong(request) or Response(text, headers=HEADERS, media_type="text/html")

    async def ask(request: Request) -> Response:
        nonlocal waiting
        if (no := wrong(request)) is not None:
            return no
        name = printable(request.query_params.get("name", ""))[:100] or "the image"
        side = request.query_params.get("side", str(most_side))
        if not (side.isascii() and side.isdigit() and len(side) < 6) or not (
            SMALLEST_SIDE <= int(side) <= most_side
        ):
            why = f"side is {side[:20]!r}; expected {SMALLEST_SIDE} to {most_side}"
            return say(400, {"error": why})
        once = "once" in request.query_params
        if waiting >= MOST_WAITING:
            return say(503, {"error": f"{waiting} images wait already; try again in a moment"})
        waiting += 1
        try:
            content = await _body(request)
            if content is None:
                most = f"expected at most {MOST_BYTES // 10**6} MB. Make it smaller first"
                return say(413, {"error": f"{name} is too large; {most}"})
            async with one_by_one:
                if await request.is_disconnected():  # nobody waits for it any more
                    return say(499, {"error": "the page has gone"})
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(worker, answer, content, name, int(side), once)
            return say(200, found)
        except ClientDisconnect:
            return say(499, {"error": "the page has gone"})
        except UserError as error:
            return say(400, {"error": printable(str(error))})
        except Exception as error:  # one image must not end the page for all others
            first = (str(error).strip().splitlines() or [""])[0][:300]
            return say(500, {"error": printable(f"{type(error).__name__}: {first}")})
        finally:
            waiting -= 1

    async def missing(request: Request, error: Exception) -> Response:
        return wrong(request) or say(404, {"error": "there is nothing else here"})

    routes = [Route("/", show, methods=["GET"]), Route("/answer", ask, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


async def _body(request: Any) -> bytes | None:
    """The content of an upload; None as soon as it is known to be too large."""
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MOST_BYTES:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine, as a number or ``"localhost"``.
        port: 0 takes a free one.

    Raises:
        UserError: the address or the port cannot be taken.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected 0 to 65535; 0 takes a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(64)
    except socket.gaierror as error:
        listening.close()
        raise UserError(
            f"--host {host}: is no address of this machine; give a number, as 127.0.0.1 or 0.0.0.0"
        ) from error
    except OSError as error:
        listening.close()
        raise UserError(
            f"--port {port} on {host}: {error.strerror or error}; give another, or --port 0 for a free one"
        ) from error
    return listening


def make_server(app: Any) -> Any:
    """A server; ``run(sockets=[socket])`` serves until Ctrl-C or until its ``should_exit`` is True."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=64,
            timeout_graceful_shutdown=3,
        )
    )
