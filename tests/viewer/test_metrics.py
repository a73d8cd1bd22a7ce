"""plr_server/viewer/metrics.py: what Prometheus scrapes, of a real server, and what the dashboard asks for."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
import time
from pathlib import Path

import faults
import pytest
from prometheus_client.parser import text_string_to_metric_families

from plr_client import LevelClient, Trainer
from plr_server import Config, launch
from plr_server.viewer.collect import Collector
from plr_server.viewer.metrics import COUNTERS, GAUGES, SUMMARY, exposition
from plr_server.viewer.web import Pages

DOCS = Path(__file__).parents[2] / "docs"
CONFIGS = {"train": Config(levels=range(50), temperature=0.5), "eval": Config(levels=range(7), strategy="sequential")}


@pytest.fixture(scope="module")
def scraped():
    """Two curricula: what Prometheus gets of them, their stats, and the pages."""
    with (
        launch(CONFIGS) as server,
        Trainer(server.address, curriculum="train") as trainer,
        Collector(server.address) as collector,
        Pages(collector, 0) as pages,
    ):
        serving = threading.Thread(target=pages.serve_forever)
        serving.start()
        faults.eventually(lambda: "counters" in str(collector.tick(None)), "the first reading")
        with LevelClient(server.address, curriculum="train") as client:
            levels = [assignment.level for assignment in client.next(16)]
            trainer.push_scores(levels, [level / 50 for level in levels])
        faults.eventually(lambda: seen_by(collector) == (1, len(set(levels))), "the look after the push")
        faults.eventually(lambda: "push_scores" in collector.timings(), "the timings after it")
        yield families(ask(pages)[1]), trainer.stats(), pages
        pages.shutdown()
        serving.join()


def seen_by(collector):
    watched = collector.document()["curricula"]["train"]
    return watched["counters"]["pushes"], watched["levels"]["total"]


def ask(pages):
    connection = http.client.HTTPConnection("127.0.0.1", pages.server_address[1], timeout=10)
    connection.request("GET", "/metrics")
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply, body


def families(text):
    """Every sample: (name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples, name, curriculum="train"):
    return samples[name, (("curriculum", curriculum),)]


def test_every_number_is_the_curriculums(scraped):
    samples, stats, _ = scraped
    for name in COUNTERS:
        assert of(samples, f"plr_{name}_total") == stats[name], name
    for name in set(GAUGES) - {"sessions", "in_flight"}:
        assert of(samples, GAUGES[name][0]) == stats[name], name
    assert of(samples, "plr_effective_levels") == pytest.approx(stats["effective_levels"], rel=1e-5)
    assert of(samples, "plr_score_mean") == pytest.approx(stats["mean_score"], rel=1e-5)
    assert of(samples, "plr_score_max") == pytest.approx(stats["max_score"], rel=1e-5)
    assert of(samples, "plr_score_weighted") > of(samples, "plr_score_mean")
    assert 0 <= time.time() - of(samples, "plr_last_push_timestamp_seconds") < 60


def test_each_curriculum_has_its_own_and_no_level_has(scraped):
    samples, _, _ = scraped
    assert of(samples, "plr_levels", "eval") == 7
    labels = {key for _, labels in samples for key, _ in labels}
    assert labels == {"curriculum", "strategy", "transform", "op", "le"}
    info = (("curriculum", "eval"), ("strategy", "sequential"), ("transform", "rank"))
    assert samples["plr_curriculum_info", info] == 1


def test_what_is_not_known_yet_is_left_out(scraped):
    samples, _, _ = scraped
    assert ("plr_last_push_timestamp_seconds", (("curriculum", "eval"),)) not in samples
    assert ("plr_score_mean", (("curriculum", "eval"),)) not in samples


def test_the_time_of_requests_is_a_histogram_by_operation(scraped):
    samples, _, _ = scraped
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in samples.items()
        if name == "plr_request_duration_seconds_bucket" and ("op", "next") in labels
    }
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[float("inf")] == 1 == samples["plr_request_duration_seconds_count", (("op", "next"),)]
    assert 0 < samples["plr_request_duration_seconds_sum", (("op", "next"),)] < 60
    assert samples["plr_request_errors_total", (("op", "push_scores"),)] == 0


def test_it_is_text_as_prometheus_reads_it(scraped):
    reply, body = ask(scraped[2])
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    for line in body.splitlines():
        if line.startswith("# TYPE"):
            assert f"# HELP {line.split()[2]} " in body


def test_the_dashboard_asks_for_nothing_that_is_not_there(scraped):
    samples, _, _ = scraped
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked.append(dashboard["templating"]["list"][0]["query"]["query"])
    names = {name for expression in asked for name in re.findall(r"plr_\w+", expression)}
    assert names <= {name for name, _ in samples}
    every = {name for name, _ in samples if not name.endswith(("_bucket", "_sum", "_count", "_created"))}
    assert every <= names | {"plr_replays_total"}  # and shows all there is


def test_the_page_of_the_docs_lists_them_all(scraped):
    samples, _, _ = scraped
    page = (DOCS / "dashboards.md").read_text()
    for name, _ in samples:
        assert f"`{re.sub('_(bucket|sum|count)$', '', name)}`" in page


def test_a_server_that_is_gone_is_down_and_old_numbers_are_not_shown():
    with launch(CONFIGS) as server, Collector(server.address) as collector:
        faults.eventually(lambda: collector.tick(None)["lost_s"] is None, "the first reading")
        said, timings = collector.tick(None), collector.timings()
    assert families(exposition(said, timings).decode())["plr_server_up", ()] == 1
    assert families(exposition(said | {"lost_s": 3.0}, timings).decode()) == {("plr_server_up", ()): 0}


def test_without_prometheus_client_it_says_what_to_install(scraped, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "plr_server.viewer.metrics")
    reply, body = ask(scraped[2])
    assert reply.status == 501
    assert "prometheus_client" in body
    assert "[metrics]" in body


def test_the_names_do_not_clash():
    names = [*COUNTERS, *(name for name, _ in (*GAUGES.values(), *SUMMARY.values()))]
    assert len(names) == len(set(names))
