"""`densekd watch`: the live page serves the run's files and nothing else, on this machine alone."""

from __future__ import annotations

import json
import threading
from http.client import HTTPConnection

import pytest

from densekd.cli.main import main
from densekd.errors import UserError
from densekd.report.live import make_server
from densekd.workflows.watch import progress, read_state
from tests.report.made_up import tree, write_run


@pytest.fixture
def served(tmp_path):
    """A run in training and a function that asks its server."""
    run = write_run(tmp_path / "run", tree(), miou=None, logged=2)
    server = make_server(lambda: read_state(run), 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    host, port = server.server_address[:2]
    assert host == "127.0.0.1"

    def ask(path, **headers):
        connection = HTTPConnection(host, port, timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    yield run, ask
    server.shutdown()
    server.server_close()


def test_page_and_data_follow_the_run(served):
    run, ask = served
    status, text, headers = ask("/")
    assert status == 200
    assert "step 20 of 40 (50 %), loss 1.500, 8.0 images/s, about 10 s left" in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    data = json.loads(ask("/data.json")[1])
    assert "<polyline" in data["body"]
    again = json.loads(ask(f"/data.json?version={data['version']}")[1])
    assert again["body"] is None
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 30, "loss": 1.0, "task/ce": 1.0}) + "\n" + '{"step": 4')
    newer = json.loads(ask(f"/data.json?version={data['version']}")[1])
    assert newer["state"].startswith("step 30 of 40")
    assert newer["body"] is not None


@pytest.mark.parametrize(
    "path", ["/config.yaml", "/../config.yaml", "/%2e%2e/etc/passwd", "//etc/passwd", "/etc/passwd"]
)
def test_no_file_is_served(served, path):
    _, ask = served
    status, text, _ = ask(path)
    assert status == 404
    assert "espnet_c" not in text


def test_another_sites_name_for_this_machine_is_refused(served):
    _, ask = served
    assert ask("/data.json", Host="evil.example:8360")[0] == 403
    assert ask("/data.json", Host="localhost:1")[0] == 200


def test_a_run_that_vanishes_is_said(served):
    run, ask = served
    (run / "config.yaml").unlink()
    data = json.loads(ask("/data.json")[1])
    assert "cannot be read" in data["state"]
    assert data["body"] is None


def test_states_of_a_run(tmp_path):
    begun = write_run(tmp_path / "a", tree(), miou=None, logged=0)
    assert "nothing is logged yet" in read_state(begun).state
    done = write_run(tmp_path / "b", tree())
    assert read_state(done).state == "finished: 40 steps, 1.5 min of training"


def test_mistakes(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["watch", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    taken = make_server(lambda: None, 0)
    try:
        with pytest.raises(UserError, match="--port"):
            make_server(lambda: None, taken.server_address[1])
        with pytest.raises(UserError, match="--port 70000"):
            make_server(lambda: None, 70000)
    finally:
        taken.server_close()


def test_several_processes_have_no_time_left(tmp_path):
    run = write_run(tmp_path / "a", tree(), miou=None, logged=2)
    (run / "command.txt").write_text("torchrun --nproc-per-node 2 -m densekd train x\n")
    from densekd.report.records import read_run

    assert "left" not in progress(read_run(run))
