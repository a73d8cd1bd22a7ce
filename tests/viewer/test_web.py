"""plr_server/viewer/web.py over real sockets: what is served, to whom, and that nothing can be changed through it."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.request

import faults
import numpy as np
import pytest

from plr_client import ConfigError, Trainer
from plr_server import Config, launch
from plr_server.viewer.collect import Collector
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.groups import Groups
from plr_server.viewer.history import CAPACITY, History
from plr_server.viewer.measures import look
from plr_server.viewer.web import STATIC, Pages, whole_page

MAX_BYTES = 150_000


@pytest.fixture(scope="module")
def live():
    """Pages of a server of 50 levels, all of them seen, that goes on changing only where a test changes it."""
    with launch(Config(levels=range(50))) as server, Trainer(server.address) as trainer:
        trainer.push_scores(range(50), [level / 50 for level in range(50)])
        with Collector(server.address) as collector, Pages(collector, 0) as pages:
            serving = threading.Thread(target=pages.serve_forever)
            serving.start()
            faults.eventually(lambda: "levels" in str(collector.document()), "the first look")
            faults.eventually(lambda: collector.document()["curricula"]["default"]["levels"]["rows"], "the first look")
            yield pages
            pages.shutdown()
            serving.join()


def ask(pages, path, *, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", pages.server_address[1], timeout=10)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def events(pages, path="/events"):
    """What the stream sends: (event, data) each."""
    with urllib.request.urlopen(f"{pages.url.rstrip('/')}{path}", timeout=20) as stream:  # noqa: S310  our own
        while True:
            event, data, _ = (stream.readline().decode().rstrip("\n") for _ in range(3))
            yield event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_the_page_and_all_that_it_loads(live):
    _, page = ask(live, "/")
    loaded = re.findall(r'(?:src|href)="(static/[^"]+)"', page.decode())
    assert sorted(loaded) == sorted(f"static/{name}" for name in STATIC)
    for name, kind in STATIC.items():
        reply, body = ask(live, f"/static/{name}")
        assert (reply.status, reply.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert len(body) == int(reply.headers["Content-Length"]) > 0


def test_a_page_with_a_full_history_takes_at_most_150_kb(live):
    num_bytes = sum(
        len(ask(live, path, **{"Accept-Encoding": "gzip"})[1])
        for path in ("/", "/levels?curriculum=default", *(f"/static/{name}" for name in STATIC))
    )
    with launch(Config(levels=range(1000))) as server, Trainer(server.address) as trainer:
        samples, rng = History(), np.random.default_rng(0)
        groups = Groups(OfLevel("group", "builtins:str"), budget_s=60.0)  # as many groups as there can be
        for t in range(CAPACITY):
            trainer.push_scores(range(1000), rng.normal(size=1000))
            it, summary = look(Config(levels=range(1000)), 0, trainer.table())
            of_groups = groups.look(it, lambda ids: ids)
            del of_groups["group_levels"]  # is of now alone
            summary |= of_groups | {"group_returns": [float(f"{each:.3g}") for each in rng.normal(size=13)]}
            samples.add(
                {"t": 1.7e9 + t, "draws": 10**6 + t, "replays": 10**6, "pushes": t, "levels_seen": 1000, **summary}
            )
    num_bytes += len(json.dumps(live.source.document("default"))) + len(json.dumps(samples.to_dict()))
    assert num_bytes <= MAX_BYTES


@pytest.mark.parametrize("path", ["/", "/save", "/levels", "/static/viewer.js"])
def test_a_page_may_ask_nobody_else_for_anything(live, path):
    reply, _ = ask(live, path)
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "", "127.0.0.1.evil.example", "localhost:1:2"])
@pytest.mark.parametrize(
    "path", ["/", "/events", "/levels", "/level?level=1", "/picture?level=1", "/save", "/static/viewer.js"]
)
def test_another_host_is_refused(live, host, path):
    reply, body = ask(live, path, Host=host)
    assert (reply.status, body) == (403, b"Host: expected one of 127.0.0.1, localhost, [::1]")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8787", "localhost:9000", "[::1]:8787"])
def test_this_machine_by_any_port_is_served(live, host):
    assert ask(live, "/", Host=host)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_nothing_but_get(live, method):
    assert ask(live, "/", method=method)[0].status == 501


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/static/",
        "/static/../web.py",
        "/static/index.html",
        "/viewer.js",
        "/static/uPlot.LICENSE",
        "//etc/passwd",
    ],
)
def test_there_is_nothing_else(live, path):
    assert ask(live, path)[0].status == 404


def test_it_listens_on_loopback_alone(live):
    assert live.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_refused(live):
    with pytest.raises(
        ConfigError, match=r"^port: expected a free one, .*, got \d+ \(\[Errno 98\] Address already in use\)$"
    ):
        Pages({}, live.server_address[1])
    with pytest.raises(ConfigError, match=r"^port: expected a free one, 0 to 65535"):
        Pages({}, 70_000)


def test_the_stream_begins_with_a_document_and_goes_on_with_ticks(live):
    stream = events(live)
    event, document = next(stream)
    assert (event, document["selected"], document["lost_s"]) == ("document", "default", None)
    assert document["curricula"]["default"]["history"]["columns"]["levels_seen"] == [50]
    event, tick = next(stream)
    assert event == "tick"
    assert tick["curricula"]["default"]["history"]["length"] == 1
    assert "columns" not in tick["curricula"]["default"]["history"]
    stream.close()


def test_an_unknown_curriculum_is_the_first_one(live):
    stream = events(live, "/events?curriculum=nobody")
    assert next(stream)[1]["selected"] == "default"
    stream.close()


def test_rows_of_the_level_table(live):
    found = json.loads(ask(live, "/levels?curriculum=default&sort=score&descending=1")[1])
    assert found["total"] == 50
    assert [row["id"] for row in found["rows"]] == list(range(49, -1, -1))
    found = json.loads(ask(live, "/levels?curriculum=default&sort=score&find=7")[1])
    assert [(row["id"], row["rank"], row["score"]) for row in found["rows"]] == [(7, 43, 0.14)]


@pytest.mark.parametrize("query", ["sort=colour", "find=abc", "find=1e3", "find=99999999999999999999"])
def test_a_question_that_makes_no_sense_is_refused(live, query):
    reply, body = ask(live, f"/levels?curriculum=default&{query}")
    assert (reply.status, body) == (
        400,
        b"sort: expected one of weight, score, staleness, id, plays, last_return; find: an id",
    )


def test_one_level_and_its_picture(live):
    known = json.loads(ask(live, "/level?curriculum=default&level=7")[1])
    assert (known["row"]["id"], known["row"]["score"], known["row"]["plays"]) == (7, 0.14, 1)
    assert (known["group"], known["payload"], known["ancestors"]) == (None, None, [])
    assert ask(live, "/picture?curriculum=default&level=7")[0].status == 404  # nobody said how to draw one


@pytest.mark.parametrize("path", ["/level", "/picture"])
@pytest.mark.parametrize("level", ["", "-", "a", "1e3", "../7", "9" * 19])
def test_a_level_that_is_no_id_is_refused(live, path, level):
    reply, body = ask(live, f"{path}?curriculum=default&level={level}")
    assert (reply.status, body) == (400, b"level: expected an id")


def test_one_file_to_keep(live):
    reply, body = ask(live, "/save")
    assert reply.headers["Content-Disposition"] == 'attachment; filename="curriculum.html"'
    page = body.decode()
    assert "static/" not in page.replace("`static/", "")
    saved = re.search(r'<script id="saved" type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(saved)["curricula"]["default"]["summary"]["table_score"] == 0.49


def test_what_is_in_a_document_cannot_end_the_element_that_holds_it():
    page = whole_page({"address": "</script><script>alert(1)</script>"})
    assert "alert(1)</script>" not in page
    assert "\\u003cscript>alert(1)\\u003c/script>" in page


def test_a_finished_run_is_served_without_a_server(live):
    document = live.source.document()
    with Pages(document, 0) as pages:
        serving = threading.Thread(target=pages.serve_forever)
        serving.start()
        page = ask(pages, "/")[1].decode()
        assert json.dumps(document)[:80].replace("<", "\\u003c") in page
        assert [ask(pages, path)[0].status for path in ("/save", "/static/viewer.js", "/events", "/levels")] == [
            200,
            200,
            404,
            404,
        ]
        pages.shutdown()
        serving.join()
