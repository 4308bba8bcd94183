"""The study's server: answers are kept, and whatever else comes changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from study_folder import serving, write_evaluation

from sgool.__main__ import main
from sgool.errors import SgoolError
from sgool.lab.study import answers as kept
from sgool.lab.study.answers import Answer, Answers
from sgool.lab.study.page import make
from sgool.lab.study.pairs import Choice
from sgool.lab.study.server import Limit, Server

VISITOR = "0123456789abcdef" * 2
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = write_evaluation(tmp_path / "evaluation")
    make(folder, Choice())
    with serving(folder) as served:
        yield served


def ask(
    server: Server | SimpleNamespace, method: str, path: str, body: bytes | None = None, headers: dict | None = None
):
    """(status, text) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def raw(server: Server, content: bytes) -> bytes:
    """The first line of the reply to these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline()


def answer(server: Server, number: int = 0, **changes: object) -> dict:
    plain = [pair for pair in server.study.pairs if pair.right is None]
    told = {"visitor": VISITOR, "pair": plain[number].id, "left": "second", "quality": "first", "agreement": "same"}
    return {**told, **changes}


def send(server: Server, told: object, **headers: str):
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return ask(server, "POST", "/answers", body, {**JSON, **headers})


def test_the_page_and_its_pictures_are_handed_out(server):
    status, page = ask(server, "GET", "/?from=mail")
    assert status == 200 and page.startswith(b"<!DOCTYPE html>")
    for pair in server.study.pairs:
        for name in pair.pictures:
            status, picture = ask(server, "GET", f"/pictures/{name}")
            assert status == 200 and picture.startswith(b"\x89PNG")
    assert ask(server, "HEAD", "/") == (200, b"")


def test_an_answer_is_kept_and_a_later_one_replaces_it(server):
    assert send(server, answer(server)) == (204, b"")
    assert server.answers.every() == [Answer(**answer(server))]
    for _ in range(3):
        assert send(server, answer(server, left="first", quality="second"))[0] == 204
    assert server.answers.every() == [Answer(**answer(server, left="first", quality="second"))]
    send(server, answer(server, 1))
    send(server, answer(server, visitor="f" * 32))
    assert server.answers.count() == 3


def test_answers_at_once_are_all_kept(server):
    threads = [
        threading.Thread(target=send, args=(server, answer(server, number % 9, visitor=f"{number:032x}")))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.answers.count() == 20


@pytest.mark.parametrize(
    "path",
    [
        "/key.json",
        "/../key.json",
        "/pictures/../../key.json",
        "/pictures/..%2f..%2fkey.json",
        "/pictures/%2e%2e/%2e%2e/key.json",
        "//key.json",
        "/pictures/",
        "/pictures",
        "/answers",
        "/answers.sqlite",
        "/etc/passwd",
        "http://127.0.0.1/../answers.sqlite",
        "/pictures/%00.png",
        "/index.html/../../key.json",
        "/<script>alert(1)</script>",
        "//[",
    ],
)
def test_a_path_reaches_nothing_but_the_page(server, path):
    status, text = ask(server, "GET", path)
    assert status == 404 and text == b"Not Found\n"


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"{",
        b"[" * 900,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"NaN",
        b"9" * 1000,
        {},
        {"visitor": VISITOR},
        {"pair": "0" * 16},
        {"pair": ["x"]},
        {"pair": None},
        {"visitor": "0" * 31},
        {"visitor": "0" * 32 + "\n"},
        {"visitor": "<script>alert(1)</script>"},
        {"visitor": "'; DROP TABLE answers; --"},
        {"visitor": "\ud800" * 32},
        {"visitor": "٣" * 32},
        {"visitor": {"a": 1}},
        {"left": "same"},
        {"quality": "best"},
        {"quality": True},
        {"agreement": ""},
        {"agreement": ["first"]},
        {"more": "x"},
    ],
)
def test_what_is_no_answer_changes_nothing(server, told):
    if isinstance(told, dict) and told not in ({}, {"visitor": VISITOR}):
        told = answer(server, **told)
    status, text = send(server, told)
    assert status == 400 and text.startswith((b"An answer", b"A visitor", b"There is no"))
    assert b"script" not in text and server.answers.every() == []


def test_an_oversized_answer_changes_nothing(server):
    for size in (1025, 60_000, 1_000_000):
        body = json.dumps(answer(server)).encode().ljust(size)
        try:
            assert send(server, body)[0] == 413
        except OSError:  # the server hung up before it was all sent
            assert size > 2**16
    assert send(server, json.dumps(answer(server)).encode(), **{"Content-Length": "9" * 30})[0] == 411
    assert server.answers.every() == []


def test_another_sites_page_cannot_answer(server):
    """A browser sends these without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"):
        assert send(server, answer(server), **{"Content-Type": kind})[0] == 415
    assert ask(server, "POST", "/answers", json.dumps(answer(server)).encode())[0] == 415
    assert ask(server, "OPTIONS", "/answers")[0] == 405
    assert server.answers.every() == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_change_nothing(server, method):
    assert ask(server, method, "/answers") == (405, b"Method Not Allowed\n")
    assert server.answers.every() == []


def test_what_is_no_request_gets_a_plain_refusal(server):
    for content, status in (
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/one\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"POST /answers HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n", b"411"),
        (b"POST /answers HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /other HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"404"),
    ):
        line = raw(server, content)
        assert status in line or (status == b"400" and not line.startswith(b"HTTP/")), line
    assert send(server, answer(server))[0] == 204  # it still works


def test_too_many_answers_are_refused(server, monkeypatch):
    server.limit = Limit(rate=0.001, burst=2)
    assert [send(server, answer(server, number))[0] for number in range(4)] == [204, 204, 429, 429]
    assert server.answers.count() == 2


def test_the_limit_is_by_address_and_time():
    now = [0.0]
    limit = Limit(rate=2.0, burst=4, clock=lambda: now[0])
    assert [limit.allows("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert limit.allows("b")
    now[0] = 1.0
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    now[0] = 100.0
    for number in range(5000):
        limit.allows(str(number))
        now[0] += 1.0
    assert len(limit._full) <= 1001


def test_a_full_file_takes_no_more(server, monkeypatch, capsys):
    pair = answer(server)["pair"]
    with contextlib.closing(sqlite3.connect(server.answers.path)) as database, database:
        rows = [(f"{number:032x}", pair, "first", "first", "first") for number in range(2000)]
        database.executemany(kept.KEEP, rows)
    size = server.answers.path.stat().st_size
    monkeypatch.setattr(kept, "MOST", size)
    statuses = [send(server, answer(server, visitor=f"{number:032x}"))[0] for number in range(5000, 5080)]
    assert statuses[-1] == 503 and server.answers.count() == 2000 + statuses.count(204)
    assert server.answers.path.stat().st_size == size
    assert "There is no room" in capsys.readouterr().err


def test_the_command_makes_a_study_says_where_it_is_and_ends_on_a_signal(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", ["a"])
    command = [sys.executable, "-m", "sgool", "study", str(folder), "--port", "0"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            port = next(found for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)))[1]
            status, page = ask(SimpleNamespace(server_port=int(port)), "GET", "/")
            assert status == 200 and b"Which picture" in page
            process.terminate()
            assert process.wait(20) == 143
            assert process.stderr.read() == "sgool: Interrupted.\n"
        finally:
            process.kill()


def test_a_second_server_on_the_port_is_refused_in_one_line(server, capsys):
    folder = server.answers.path.parents[1]
    assert main(["study", str(folder), "--port", str(server.server_port)]) == 2
    assert "cannot be served on 127.0.0.1" in capsys.readouterr().err
    assert main(["study", str(folder), "--methods", "sd", "sgool"]) == 2
    assert "There is a study" in capsys.readouterr().err
    with pytest.raises(SgoolError, match="cannot be served"):
        Server(folder, "no host", 0)


def test_answers_from_files_are_added(server, tmp_path, capsys):
    folder = server.answers.path.parents[1]
    file = tmp_path / "answers.json"

    def add(told: object) -> int:
        file.write_text(json.dumps(told))
        return main(["study", str(folder), "--add", str(file)])

    two = [answer(server, 0), answer(server, 1)]
    assert add({"study": server.study.id, "answers": two}) == 0 and add({"study": server.study.id, "answers": two}) == 0
    assert Answers(server.answers.path).every() == sorted((Answer(**each) for each in two), key=lambda each: each.pair)
    capsys.readouterr()
    for wrong, said in (
        ({"study": "other", "answers": two}, "belong to another study"),
        ({"study": server.study.id, "answers": [answer(server, 2), answer(server, pair="x")]}, "There is no such pair"),
        ({"study": server.study.id, "answers": 3}, "holds no answers"),
        ([], "holds no answers"),
    ):
        assert add(wrong) == 2 and said in capsys.readouterr().err
    assert server.answers.count() == 2


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_text("not a database at all" * 100)
    with pytest.raises(SgoolError, match="cannot be used"):
        Answers(path)
