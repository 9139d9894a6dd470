"""The server of `densekd serve`: who is answered, what is refused, one question at a time."""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from densekd.errors import UserError
from densekd.report import serve as module
from densekd.report.serve import bind, check_packages, refused
from tests.report.served import Network, image_bytes, served


def asked(port, path="/answer", body=None, method="POST", **headers):
    """Status and JSON (or text) of one question."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    kind = answer.headers.get("Content-Type", "")
    return answer.status, json.loads(text) if "json" in kind else text, answer.headers


@pytest.fixture(scope="module")
def site():
    with served([Network(), Network(light=1)]) as made:
        yield made


def test_the_page_and_an_answer(site):
    status, text, headers = asked(site.port, "/", method="GET")
    assert status == 200
    assert "student and teacher" in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, found, _ = asked(site.port, "/answer?side=512&name=a%20street.png", image_bytes())
    assert status == 200
    assert (found["name"], found["given"], found["seen"]) == ("a street.png", [96, 48], [96, 48])
    first, second = found["answers"]
    assert [(e["name"], e["value"]) for e in first["legend"]["entries"]] == [
        ("road", "50.0 %"),
        ("sky", "50.0 %"),
    ]
    assert second["legend"]["entries"][1]["colour"] == "#dcdc00"
    assert first["picture"]["uri"].startswith("data:image/webp;base64,")
    assert found["remarks"] == ["They give the same class at 50.0 % of the pixels."]


def test_a_large_image_is_made_smaller(site):
    found = asked(site.port, "/answer?side=64", image_bytes((100, 200)))[1]
    assert (found["given"], found["seen"]) == ([200, 100], [64, 32])
    assert site.models.models[0].shapes[-1] == (32, 64, 3)


def bomb() -> bytes:
    """A PNG whose header states 60000 x 60000 pixels."""

    def part(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b""))
        + part(b"IEND", b"")
    )


BAD = {
    "text": (b"this is no image", "cannot be opened as an image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be opened as an image"),
    "truncated": (image_bytes()[:-60], "truncated or damaged"),
    "empty": (b"", "is empty"),
    "bomb": (bomb(), "60000x60000|too large|exceeds"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_said_and_ends_nothing(site, kind):
    content, words = BAD[kind]
    status, found, _ = asked(site.port, "/answer?name=the.file", content)
    assert status == 400
    assert "the.file" in found["error"]
    assert any(word in found["error"] for word in words.split("|"))
    assert asked(site.port, body=image_bytes())[0] == 200


@pytest.mark.parametrize("side", ["0", "31", "4096", "-5", "x", "9" * 50, "²"])
def test_a_side_out_of_range_is_refused(site, side):
    status, found, _ = asked(
        site.port, f"/answer?side={side.encode().hex() if side == '²' else side}", image_bytes()
    )
    assert status == 400
    assert "expected 32 to 2048" in found["error"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/../x", "/%2e%2e/x", "/answer/x", "/static/page.css"]
)
def test_there_are_no_files(site, path):
    assert asked(site.port, path, method="GET")[0] == 404


def test_other_sites_are_refused(site):
    body = image_bytes()
    for name in (
        "evil.example",
        f"evil.example:{site.port}",
        "127.0.0.1.evil.example",
        "192.168.0.7",
    ):
        assert asked(site.port, "/", method="GET", Host=name)[0] == 403
        assert asked(site.port, body=body, Host=name)[0] == 403
    assert asked(site.port, body=body, Origin="http://evil.example")[0] == 403
    assert asked(site.port, body=body, Origin="null")[0] == 403
    assert asked(site.port, body=body, Sec_Fetch_Site="cross-site")[0] == 403
    own = f"http://127.0.0.1:{site.port}"
    assert asked(site.port, body=body, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    assert (
        asked(site.port, "/", method="GET", Host="localhost:9", Sec_Fetch_Site="cross-site")[0]
        == 200
    )


def test_who_is_answered_on_an_open_address():
    assert refused("192.168.0.7:8361", "http://192.168.0.7:8361", "same-origin", local=False) == ""
    assert refused("[::1]:8361", None, None, local=True) == ""
    assert "by its number" in refused("evil.example", None, None, local=False)
    assert "its own page" in refused("10.0.0.1", "http://10.0.0.2", None, local=False)


def test_uploads_have_a_limit(site, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    status, found, _ = asked(site.port, "/answer?name=big", b"x" * 101)
    assert status == 413
    assert "big is too large" in found["error"]

    def parts():  # no length is stated
        yield from [b"x" * 60] * 3

    assert asked(site.port, "/answer", parts())[0] == 413


def test_one_question_at_a_time_and_no_endless_queue(monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    inside, most, threads = 0, 0, set()
    gate = threading.Event()

    def answer(content, name, side, once):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threads.add(threading.get_ident())
        gate.wait(10)
        time.sleep(0.01)
        inside -= 1
        return {}

    with served([Network()], ["one"], answer=answer) as site, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(asked, site.port, body=b"x") for _ in range(6)]
        until = time.monotonic() + 10
        while sum(f.done() for f in waiting) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        gate.set()
        statuses = sorted(f.result()[0] for f in waiting)
    assert statuses == [200] * 3 + [503] * 3
    assert (most, len(threads)) == (1, 1)


def test_a_network_that_fails_ends_nothing():
    class Broken(Network):
        def predict(self, image):
            if image.shape[0] == 48:
                raise RuntimeError("shapes do not fit\nsecond line")
            return super().predict(image)

    with served([Broken()], ["one"]) as site:
        status, found, _ = asked(site.port, body=image_bytes())
        assert (status, found["error"]) == (500, "RuntimeError: shapes do not fit")
        assert asked(site.port, body=image_bytes((40, 40)))[0] == 200


def test_a_taken_port_is_said():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"--port {port} on 127\.0\.0\.1: .*--port 0 for a free one"
        ):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match="expected 0 to 65535"):
        bind("127.0.0.1", 70000)
    with pytest.raises(UserError, match=r"--host nowhere\.invalid"):
        bind("nowhere.invalid", 0)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"uvicorn: pip install 'densekd\[serve\]'"):
        check_packages()
