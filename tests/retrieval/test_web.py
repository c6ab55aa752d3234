"""The search service over a real loopback socket: answers, reasons, bounds, headers, and what it refuses."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.retrieval import BM25Vectorizer, ImpactIndex, Words
from ellzero.retrieval.explaining import contributions
from ellzero.retrieval.quantise import as_queries
from ellzero.retrieval.service import SearchService, Texts
from ellzero.retrieval.web import SearchServer
from ellzero.rng import rng

TEXTS = {
    "d1": ("Wings", "wings lift in a slipstream"), "d2": ("", "heat in composite slabs"),
    "d3": ("<b>Lift</b>", "lifting wings & heated wings </script>" + " wings" * 300), "d4": ("", ""),
}  # fmt: skip


def service(folder, **options):
    with open(folder / "c.jsonl", "w") as file:
        for name, (title, text) in TEXTS.items():
            file.write(json.dumps({"_id": name, "title": title, "text": text}) + "\n\n")
    model = BM25Vectorizer(tokenizer=Words(stemmer=None))
    X = model.fit_transform([f"{title} {text}" for title, text in TEXTS.values()])
    index = ImpactIndex.build(X, list(TEXTS), vocabulary=model.vocabulary)
    return SearchService(index, model.encode_query, texts=Texts(folder / "c.jsonl"), name="<four>", **options)


@contextmanager
def running(made, **options):
    with SearchServer(made, port=0, **options) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def ask(server, path, method="GET", headers=None, body=None):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request(method, path, body=body, headers=headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(service(tmp_path_factory.mktemp("web"))) as server:
        yield server


def test_hits_come_with_their_reasons(server):
    response, content = ask(server, "/api/search?q=wings+lift+unheard&k=3")
    assert response.status == 200
    answer = json.loads(content)
    assert [hit["id"] for hit in answer["hits"]] == ["d1", "d3"]
    held = server.service.index
    wanted = held.search(server.service._encode(["wings lift unheard"]), 3)
    assert [hit["score"] for hit in answer["hits"]] == wanted.scores[0].tolist()
    assert [term["term"] for term in answer["terms"]] == ["lift", "wings"] or answer["terms"][0]["weight"] == 1
    for hit in answer["hits"]:
        assert sum(term["score"] for term in hit["terms"]) == pytest.approx(hit["score"])
        said = held.explain(server.service._encode(["wings lift unheard"]), hit["id"])
        assert hit["terms"] == said["terms"]
    assert answer["hits"][0]["title"] == "Wings"
    assert answer["hits"][1]["cut"] is True
    assert len(answer["hits"][1]["text"]) == 600
    assert json.loads(ask(server, "/api/search?q=unheard")[1])["hits"] == []
    assert json.loads(ask(server, "/api/about")[1])["documents"] == 4


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [("/api/search", 400, "q: got nothing"), ("/api/search?q=%20", 400, "q: got nothing"),
     ("/api/search?q=" + "a" * 501, 400, "501 characters, want at most 500"),
     ("/api/search?q=a&k=0", 400, "k: got 0"), ("/api/search?q=a&k=101", 400, "k: got 101"),
     ("/api/search?q=a&k=1e3", 400, "k: got '1e3'"), ("/api/search?q=a&k=" + "9" * 400, 400, "k: got '999"),
     ("/api/search?q=%ff", 400, "decode"), ("/api/search?" + "&".join("a=1" for _ in range(20)), 400, "fields"),
     ("/" + "a" * 9000, 414, "9001 characters"), ("/" + "a" * 70000, 414, "Too Long"),
     ("/nothing", 404, "no such page"), ("/../../etc/passwd", 404, "no such page"),
     ("/search.css.map", 404, "no such page")],
)  # fmt: skip
def test_what_is_refused(server, path, status, message):
    response, content = ask(server, path)
    assert response.status == status
    assert message in json.loads(content)["error"]
    assert_guarded(response)


def test_an_address_that_is_none(server):
    with socket.create_connection(server.server_address[:2], timeout=60) as raw:
        raw.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")


def assert_guarded(response):
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Server"] == "ellzero"


def test_the_page_and_its_headers(server):
    response, content = ask(server, "/?q=wings")
    assert response.status == 200
    assert_guarded(response)
    page = content.decode()
    assert "&lt;four&gt;" in page
    assert "<four>" not in page
    assert "{" not in page.split("</head>")[1]
    assert "4 documents" in page
    for path, kind in (("/search.css", "text/css"), ("/search.js", "text/javascript")):
        response, content = ask(server, path)
        assert response.headers["Content-Type"].startswith(kind)
        assert_guarded(response)
        assert len(content) > 1000
    response, content = ask(server, "/", "HEAD")
    assert (response.status, content) == (200, b"")
    assert int(response.headers["Content-Length"]) == len(page.encode())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_is_written(server, method):
    response, content = ask(server, "/api/search?q=a", method, body=b"x" * 10 if method != "TRACE" else None)
    assert response.status == (501 if method == "TRACE" else 405)
    assert "error" in json.loads(content)
    assert_guarded(response)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:99", 200), ("127.0.0.1", 200), ("[::1]:5", 200), ("evil.example", 421), ("", 421),
     ("127.0.0.1.evil.example", 421), ("10.0.0.1", 421), ("[", 421)],
)  # fmt: skip
def test_another_sites_name_is_refused(server, host, status):
    assert ask(server, "/api/about", headers={"Host": host})[0].status == status


def test_requests_and_searches_are_bounded(tmp_path, monkeypatch):
    made = service(tmp_path)
    gate, waiting, real = threading.Event(), threading.Semaphore(0), made.answer

    def slow(text, k):
        waiting.release()
        assert gate.wait(60)
        return real(text, k)

    monkeypatch.setattr(made, "answer", slow)
    monkeypatch.setattr("ellzero.retrieval.web.PATIENCE", 0.05)
    with running(made, workers=1, connections=3) as server:
        statuses = []
        first = threading.Thread(target=lambda: statuses.append(ask(server, "/api/search?q=wings")[0].status))
        first.start()
        assert waiting.acquire(timeout=60)
        response, content = ask(server, "/api/search?q=wings")  # one worker: the second search waits, and gives up
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert "too many searches" in json.loads(content)["error"]
        assert ask(server, "/api/about")[0].status == 200  # pages are still served
        idle = [socket.create_connection(server.server_address[:2]) for _ in range(2)]  # two say nothing: no place left
        response, _ = ask(server, "/api/about")
        assert response.status == 503
        for one in idle:
            one.close()
        gate.set()
        first.join(60)
        assert statuses == [200]
        for _ in range(100):  # places come back
            if ask(server, "/api/about")[0].status == 200:
                break
        else:
            raise AssertionError("no place came back")


def test_a_request_that_does_not_arrive_is_given_up(tmp_path):
    with running(service(tmp_path), connections=1, timeout_seconds=0.2) as server:
        with socket.create_connection(server.server_address[:2]) as idle:
            idle.sendall(b"GET / HT")
            idle.settimeout(60)
            assert idle.recv(100) == b""  # closed by the service
        assert ask(server, "/api/about")[0].status in (200, 503)


def test_a_search_that_fails_is_told_without_its_inside(tmp_path, monkeypatch, capsys):
    made = service(tmp_path)

    def broken(text, k):
        raise RuntimeError("secret")

    monkeypatch.setattr(made, "answer", broken)
    with running(made) as server:
        response, content = ask(server, "/api/search?q=wings")
    assert response.status == 500
    assert b"secret" not in content
    assert "RuntimeError: secret" in capsys.readouterr().err


def test_many_threads_ask_at_once(server):
    wanted = [hit["id"] for hit in json.loads(ask(server, "/api/search?q=wings+heat")[1])["hits"]]
    wrong = []

    def work():
        for _ in range(10):
            response, content = ask(server, "/api/search?q=wings+heat")
            if response.status != 200 or [hit["id"] for hit in json.loads(content)["hits"]] != wanted:
                wrong.append(content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong


def test_reasons_of_many_documents_are_those_of_each(tmp_path):
    draw = rng(0, "reasons")
    X = draw.integers(0, 9, (400, 30)) * (draw.random((400, 30)) < 0.3)
    ids = [f"d{i}" for i in range(400)]
    index = ImpactIndex.build(X[:250].astype(float), ids[:250], order=draw.permutation(250), block_size=4)
    index.append(X[250:].astype(float), ids[250:])
    index.delete(["d3"])
    query = draw.integers(0, 5, (1, 30)).astype(float)
    asked = as_queries(query, 30, None)
    names = [*reversed(ids), "unknown"]
    said = contributions(index._snapshot.segments, asked, names, index.scale, None)
    assert said[-1] is None
    assert said[names.index("d3")] is None
    for name, one in zip(names, said):
        if one is None:
            continue
        row = X[int(name[1:])]
        assert one["score"] == query[0] @ row
        wanted = {t: query[0, t] * row[t] for t in np.flatnonzero(query[0] * row)}
        assert {term["term"]: term["score"] for term in one["terms"]} == wanted
        assert one == index.explain(query, name)


def test_texts_and_addresses(tmp_path):
    made = service(tmp_path)
    assert made.texts.get("d1") == TEXTS["d1"]
    assert made.texts.get("d9") is None
    (tmp_path / "c.jsonl").write_text('{"_id": "x", "text": "y"}\n' * 20)
    with pytest.raises(InputError, match="changed since it was opened"):
        made.texts.get("d1")
    with pytest.raises(InputError, match="'x' stands twice"):
        Texts(tmp_path / "c.jsonl")
    with running(made) as server, pytest.raises(InputError, match="host: cannot listen"):
        SearchServer(made, port=server.server_address[1])
    for options in ({"port": -1}, {"workers": 0}, {"connections": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            SearchServer(made, **options)
