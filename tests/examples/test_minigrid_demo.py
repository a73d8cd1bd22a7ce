"""The live page of examples/minigrid_demo.py: it is there while the demo trains, and kept as a file."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

import faults

from plr_client import Trainer
from plr_server import Config, launch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import minigrid_demo


def test_the_page_is_live_and_then_a_file(tmp_path):
    kept = tmp_path / "plr-demo.html"
    with launch(Config(levels=range(50))) as server, Trainer(server.address) as trainer:
        trainer.push_scores(range(20), [level / 20 for level in range(20)])
        with minigrid_demo.live_page(server.address, kept) as url:
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            rows = f"{url}levels?curriculum=default"
            faults.eventually(lambda: json.loads(fetched(rows))["total"] == 20, "the first look")
            assert not kept.exists()
    saved = re.search(r'<script id="saved" type="application/json">(.*?)</script>', kept.read_text(), re.DOTALL)[1]
    assert json.loads(saved)["curricula"]["default"]["counters"]["levels_seen"] == 20


def fetched(url):
    with urllib.request.urlopen(url, timeout=faults.DEADLINE_S) as page:  # noqa: S310  our own page
        return page.read()
