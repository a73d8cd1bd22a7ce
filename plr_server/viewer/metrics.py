"""What a viewer knows in the text format that Prometheus scrapes: `GET /metrics`.

Used by web, which imports it when somebody asks for it; needs `prometheus_client` (the extra `metrics`). Pure: it reads
no server, and turns what a collector has read anyway into text. docs/grafana.json shows these numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from plr_client.errors import needed

with needed("prometheus_client", "metrics"):
    from prometheus_client import generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )

CONTENT_TYPE = "text/plain; version=0.0.4"
COUNTERS = {  # of `Trainer.counters`; exported as plr_NAME_total
    "draws": "Levels handed out.",
    "replays": "Levels handed out that had a score already.",
    "pushes": "Rollout blocks, steps and score lists that were pushed.",
    "steps": "Env steps that were pushed.",
    "episodes": "Episodes that were pushed to their end.",
    "scores": "Scores given to levels.",
    "entered": "Levels that entered the table (open level spaces).",
    "evicted": "Levels that left the table for a better one (open level spaces).",
    "rejected": "Scores of levels that did not enter the table (open level spaces).",
}
GAUGES = {  # of `Trainer.counters`: name and what it is
    "levels": ("plr_levels", "Levels of the level space; its capacity where it is open."),
    "levels_seen": ("plr_levels_seen", "Levels that have a score."),
    "in_flight": ("plr_levels_in_flight", "Env slots that play a level now."),
    "waiting": ("plr_levels_waiting", "New levels that are kept until they have a score (open level spaces)."),
    "prefetched": ("plr_levels_prefetched", "Levels that wait in clients that ask ahead."),
    "prefetch_lag_pushes": ("plr_prefetch_lag_pushes", "Pushes by which a level asked for ahead is old, on average."),
    "sessions": ("plr_sessions", "Clients of the server, this viewer left out."),
}
SUMMARY = {  # of `measures.look`
    "effective_levels": ("plr_effective_levels", "exp of the entropy of P_replay: as spread out as so many levels."),
    "table_score": ("plr_score_mean", "Mean score of the seen levels: what a uniform replay draws."),
    "score_max": ("plr_score_max", "Highest score."),
    "drawn_score": ("plr_score_weighted", "Mean score of what a replay draws."),
}


def exposition(said: Mapping[str, Any], timings: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Returns the numbers of all curricula, each with the label `curriculum`, and those of requests, with `op`.

    While the server does not answer there is `plr_server_up` 0 alone, so that nobody takes old numbers for new ones.

    Args:
        said: as `Collector.tick` gives it.
        timings: as `Trainer.timings` gives them.
    """
    return generate_latest(_Said(said, timings))


class _Said:
    """What prometheus_client takes for a registry."""

    def __init__(self, said: Mapping[str, Any], timings: Mapping[str, Mapping[str, Any]]) -> None:
        self._is_up = said["lost_s"] is None
        self._timings = timings if self._is_up else {}
        self._curricula = {
            name: watched for name, watched in said["curricula"].items() if self._is_up and "counters" in watched
        }

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("plr_server_up", "1 while the curriculum server answers, else 0.", float(self._is_up))
        yield from self._of_requests()
        info = InfoMetricFamily("plr_curriculum", "How the curriculum is configured.", labels=["curriculum"])
        last_push = GaugeMetricFamily(
            "plr_last_push_timestamp_seconds",
            "Unix time of the last push that the viewer saw.",
            labels=["curriculum"],
            unit="seconds",
        )
        for name, watched in self._curricula.items():
            config = watched["config"]
            info.add_metric([name], {"strategy": config["strategy"], "transform": config["transform"]})
            if watched["pushed_t"] is not None:
                last_push.add_metric([name], watched["pushed_t"])
        yield from (info, last_push)
        for count, text in COUNTERS.items():
            counter = CounterMetricFamily(f"plr_{count}", text, labels=["curriculum"])
            for name, watched in self._curricula.items():
                counter.add_metric([name], watched["counters"][count])
            yield counter
        for source, gauges in (("counters", GAUGES), ("summary", SUMMARY)):
            for key, (name, text) in gauges.items():
                gauge = GaugeMetricFamily(name, text, labels=["curriculum"])
                for curriculum, watched in self._curricula.items():
                    if (value := watched[source].get(key)) is not None:
                        gauge.add_metric([curriculum], value)
                yield gauge

    def _of_requests(self) -> Iterator[Metric]:
        errors = CounterMetricFamily("plr_request_errors", "Requests that were answered with an error.", labels=["op"])
        took = HistogramMetricFamily(
            "plr_request_duration_seconds", "Time that the server took for an answer.", labels=["op"], unit="seconds"
        )
        for op, timing in self._timings.items():
            errors.add_metric([op], timing["errors"])
            up_to = list(itertools.accumulate(timing["counts"]))
            bounds = [*(f"{2**k / 1e6:g}" for k in range(len(up_to) - 1)), "+Inf"]
            took.add_metric([op], list(zip(bounds, up_to, strict=True)), timing["seconds"])
        yield from (errors, took)
