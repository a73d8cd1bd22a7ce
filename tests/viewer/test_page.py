"""The live page in a real browser: what every panel shows is held against a curriculum in this process.

`make test-browser` runs it, with Playwright and the chromium of the system; elsewhere it is skipped.
"""

from __future__ import annotations

import contextlib
import decimal
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import faults
import numpy as np
import pytest
from level_env import LevelEnv

from plr_client import LevelClient, Trainer
from plr_server import Config, Curriculum, launch
from wrappers import LevelReplay

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs chromium: apt-get install chromium fonts-dejavu-core", allow_module_level=True)

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
ROOT = Path(__file__).parents[2]
CONFIG = Config(levels=range(200), temperature=0.3)
ALL_BYTES = 150_000
MEMORY_BYTES = 150_000_000
READABLE = 4.5  # contrast of text, as WCAG AA asks for
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Watched:
    """A page, and all that it asked for and complained about."""

    def __init__(self, browser, url, *, width=1280, height=800, scheme="light"):
        self.context = browser.new_context(
            locale="en-US", viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints, self.asked = [], []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = url
        self.page.goto(url)

    def _listen(self, message):
        gone = "net::ERR_" in message.text  # its viewer has, as some tests want it
        if message.type == "error" and not gone:
            self.complaints.append(message.text)

    def foreign(self):
        return [url for url in self.asked if not url.startswith((self.url, "data:"))]

    def tile(self, name):
        """The value and the line below it."""
        found = self.page.locator(f"[data-tile={name}] dd")
        return found.nth(0).inner_text(), found.nth(1).inner_text()

    def caption(self, name):
        return self.page.locator(f"#answer-{name}").inner_text()

    def verdict(self):
        return self.page.locator("#verdict").inner_text()

    def await_text(self, selector, text):
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
        )

    def await_draws(self, draws):
        """Waits until the newest look, and the rows of the levels, are of so many draws."""
        self.page.wait_for_function(
            "draws => shown?.curricula[selected]?.history?.columns?.draws?.at(-1) === draws", arg=draws
        )
        self.page.wait_for_function("() => document.querySelectorAll('#rows tr').length > 0")


@pytest.fixture
def visit(browser):
    """Opens pages that must ask no other host for anything, and complain of nothing."""
    opened = []

    def visit(url, **options):
        opened.append(Watched(browser, url, **options))
        return opened[-1]

    yield visit
    for watched in opened:
        watched.context.close()
    assert [watched.foreign() for watched in opened] == [[]] * len(opened)
    assert [watched.complaints for watched in opened] == [[]] * len(opened)


@contextlib.contextmanager
def viewing(*words, port=0):
    """Runs `plr-server view`, and yields the page's URL and the process."""
    command = [sys.executable, "-m", "plr_server", "view", *map(str, words), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own command
    try:
        yield process.stdout.readline().rpartition(" ")[2].strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def play(address, curriculum, *, rounds=40, name="default"):
    """Plays and scores levels on the server and, just so, in the curriculum in this process."""
    rng = np.random.default_rng(3)
    with LevelClient(address, curriculum=name) as client, Trainer(address, curriculum=name) as trainer:
        for _ in range(rounds):
            levels = [assignment.level for assignment in client.next(8)]
            assert levels == [assignment.level for assignment in curriculum.sample(8)]
            scores = rng.random(8) * (np.array(levels) % 20)
            trainer.push_scores(levels, scores)
            curriculum.update_scores(levels, scores)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A server that has played, the curriculum that did the same in this process, and its page's URL."""
    bind, curriculum = f"ipc://{tmp_path_factory.mktemp('run')}/plr.sock", Curriculum(CONFIG)
    with faults.daemon(bind, "--temperature", "0.3") as server:
        play(server.address, curriculum)
        with viewing(server.address) as (url, _):
            yield server.address, curriculum, url


def shown(value):
    """A number as the page words it: three significant digits, whole numbers whole."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    with decimal.localcontext() as context:
        context.prec, context.rounding = 3, decimal.ROUND_HALF_UP
        return f"{+decimal.Decimal(repr(float(value))):f}".rstrip("0").rstrip(".")


# ---- what it says


def test_every_panel_says_what_the_curriculum_says(run, visit):
    _, curriculum, url = run
    page = visit(url)
    page.await_draws(320)
    stats, weights = curriculum.stats(), curriculum.weights()
    _, scores, staleness, seen = curriculum.scores()
    levels_seen, drawn = stats["levels_seen"], float(weights @ scores)
    assert page.tile("effective_levels") == (shown(stats["effective_levels"]), f"of {levels_seen} seen")
    assert page.tile("levels_seen") == (f"{shown(100 * stats['seen_share'])} %", f"{levels_seen} of 200")
    assert page.tile("drawn_score") == (shown(drawn), f"uniform {shown(stats['mean_score'])}")
    assert page.tile("replay_share") == (f"{shown(100 * stats['replay_share'])} %", "of 320 draws")
    middle, most = np.quantile(staleness[seen], (0.5, 0.9))
    assert page.tile("staleness") == (shown(middle), f"90 % below {shown(most)}")
    assert page.tile("sessions")[0] == "0"
    assert shown(stats["effective_levels"]) in page.caption("spread")
    assert f"scores {shown(drawn)} on average, a uniform draw {shown(stats['mean_score'])}" in page.caption("gain")
    low, half, high = np.quantile(scores[seen], (0, 0.5, 1))
    assert page.caption("scores") == f"From {shown(low)} to {shown(high)}, half of them below {shown(half)}."
    heaviest = np.sort(weights)[::-1].cumsum()
    few = int((heaviest < 0.9).sum()) + 1
    assert page.caption("mass") == f"{few} of {levels_seen} seen levels take 90 % of the replays."
    assert f"{few} of {levels_seen} seen levels take 90 % of the replays: temperature 0.3 is sharp." in page.verdict()
    assert f"{100 * (200 - levels_seen) / 200:.0f} % of the levels are still unseen." in page.verdict()
    assert f"It works: what is replayed scores {shown(drawn)} on average" in page.verdict()


def table(page):
    return page.page.locator("#rows tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    )


def test_the_level_table_says_why_each_level_is_played(run, visit):
    _, curriculum, url = run
    page = visit(url)
    page.await_draws(320)
    ids, scores, staleness, seen = curriculum.scores()
    weights = curriculum.weights()
    by_weight = sorted(np.flatnonzero(seen).tolist(), key=lambda index: -weights[index])
    by_score = sorted(np.flatnonzero(seen).tolist(), key=lambda index: (-scores[index], index))
    rows = table(page)
    assert len(rows) == min(50, int(seen.sum()))
    assert [int(row[0]) for row in rows[:5]] == [ids[index] for index in by_weight[:5]]
    for row in rows[:5]:
        index = ids.tolist().index(int(row[0]))
        assert int(row[1]) == by_score.index(index) + 1
        assert row[2] == shown(scores[index])
        assert float(row[3].removesuffix(" %")) == pytest.approx(100 * weights[index], rel=0.01)
        assert row[6] == shown(staleness[index])
    page.page.locator("[data-sort=staleness]").click()
    page.page.wait_for_selector("th[aria-sort=descending] [data-sort=staleness]")
    oldest = np.sort(staleness[seen])[::-1][:5]
    assert [row[6] for row in table(page)[:5]] == [shown(age) for age in oldest]
    page.page.locator("#find").fill(str(ids[by_score[3]]))
    page.page.wait_for_function("() => document.querySelectorAll('#rows tr').length === 1")
    assert table(page)[0][:2] == [str(ids[by_score[3]]), "4"]


PIXEL = """([id, x, y]) => {
  const { plot } = charts.find((chart) => chart.spec.id === id), { bbox } = plot;
  const at = [bbox.left + x * bbox.width, bbox.top + (1 - y) * bbox.height];
  return [...plot.ctx.getImageData(...at, 1, 1).data].slice(0, 3);
}"""


def test_the_heat_maps_are_dark_where_the_levels_and_their_scores_are(tmp_path, visit):
    bind = f"ipc://{tmp_path}/plr.sock"
    with faults.daemon(bind, "--levels", "0:64", "--temperature", "0.01", "--staleness-coef", "0") as server:
        with Trainer(server.address) as trainer:
            trainer.push_scores(range(64), [0.0] * 32 + [0.25] * 31 + [1.0])
            trainer.push_scores([10], [1.5])  # all the mass at level 10
        with viewing(server.address) as (url, _):
            page = visit(url)
            page.page.wait_for_function("() => charts.find((chart) => chart.spec.id === 'mass').plot")
            ramp = [[int(part) for part in re.findall(r"\d+", text)] for text in page.page.evaluate("ramp")]

            def shade(chart, height):
                """Where on the ramp, 0 to 255, the middle column is at a height; None where nothing is drawn."""
                rgb = page.page.evaluate(PIXEL, [chart, 0.51, height])
                return ramp.index(rgb) if rgb in ramp[1:] else None

            assert shade("mass", 10.5 / 64) == 255
            assert shade("mass", 30.3 / 64) is None
            shares = {0.0: 31, 0.25: 31, 1.0: 1, 1.5: 1}  # of 64 levels, by score
            for score, num in shares.items():
                cell = min(int(score / 1.5 * 32), 31)
                assert shade("scores", (cell + 0.5) / 32) == pytest.approx(255 * (num / 64) ** (1 / 3), abs=1)
            assert shade("scores", 12.4 / 32) is None


# ---- groups, pictures and single levels

EXAMPLES = "examples.accel_editing"
NOTHING = "\N{EN DASH}"  # what the page says where there is nothing to say
SOME_PICTURE = "() => [...document.querySelectorAll('#rows img')].some((image) => image.naturalWidth)"


@pytest.fixture(scope="module")
def mazes(tmp_path_factory):
    """A server of ACCEL mazes that were played, the curriculum that did the same here, and its page's URL."""
    sys.path.insert(0, str(ROOT))
    accel = importlib.import_module(EXAMPLES)
    config = Config(levels="payloads", capacity=64, strategy="value_l1", temperature=1.0, replay_prob=0.5)
    bind = f"ipc://{tmp_path_factory.mktemp('mazes')}/plr.sock"
    curriculum, rng = Curriculum(config), np.random.default_rng(2)
    with launch(config, bind) as server, Trainer(server.address) as trainer:
        both = (trainer, curriculum)
        made = [accel.random_maze(rng) for _ in range(20)]
        for each in both:
            ids = each.insert(made)
        for _ in range(6):
            levels, shape = rng.choice(ids, 8), (1, 8)
            block = {
                "values": rng.random(shape),
                "rewards": rng.integers(0, 5, shape) / 4,
                "dones": np.ones(shape, bool),
                "levels": levels[np.newaxis],
                "next_values": np.zeros(8),
            }
            for each in both:
                (trainer.push if each is trainer else each.update)(**block)
        parent = int(ids[int(curriculum.scores()[1].argmax())])
        maze, lineage = made[ids.tolist().index(parent)], [parent]
        for score in (1.5, 2.5):
            maze = accel.edit(maze, rng)
            for each in both:
                (child,) = each.insert([maze], scores=[score], parents=[lineage[-1]])
            lineage.append(int(child))
        words = ("--group", f"{EXAMPLES}:walls_of", "--render", f"{EXAMPLES}:picture_of")
        with viewing(server.address, *words) as (url, _):
            yield curriculum, url, lineage, maze, accel


def await_level(page, level):
    page.page.wait_for_selector(f"tr[data-level='{level}']")


def test_plays_and_returns_are_those_of_the_curriculum(mazes, visit):
    curriculum, url, lineage, _, _ = mazes
    page = visit(url)
    await_level(page, lineage[-1])
    rows = curriculum.table()
    expected = {
        str(level): (shown(plays), NOTHING if np.isnan(returned) else shown(returned))
        for level, plays, returned in zip(
            rows.ids.tolist(), rows.plays.tolist(), rows.last_returns.tolist(), strict=True
        )
    }
    assert {row[0]: (row[7], row[8]) for row in table(page)} == expected
    assert page.tile("mean_return")[0] == shown(float(f"{np.nanmean(rows.last_returns):.6g}"))
    page.page.locator("[data-sort=plays]").click()
    page.page.wait_for_selector("th[aria-sort=descending] [data-sort=plays]")
    assert [row[7] for row in table(page)] == [shown(plays) for plays in sorted(rows.plays.tolist(), reverse=True)]


def test_mass_and_returns_by_group_are_the_sums_of_the_curriculum(mazes, visit):
    curriculum, url, lineage, _, accel = mazes
    page = visit(url)
    await_level(page, lineage[-1])
    rows, weights = curriculum.table(), curriculum.weights()
    group_of = {level.level: accel.walls_of(level.payload) for level in curriculum.levels(rows.ids)}
    labels = sorted(set(group_of.values()), key=lambda label: int(label.split()[0]))
    mass = dict.fromkeys(labels, 0.0)
    for level, weight in zip(rows.ids.tolist(), weights.tolist(), strict=True):
        mass[group_of[level]] += weight
    page.page.wait_for_function("() => !document.querySelector('#chart-group-mass').hidden")
    told = page.page.evaluate(
        "() => { const now = shown.curricula[selected], mass = groupMass(now.summary.group_mass, now.groups.length);"
        "return groupsOf(now).map(({ label, at }) => [label, mass[at], now.summary.group_levels[at]]); }"
    )
    assert [label for label, _, _ in told] == labels
    for label, share, num in told:
        assert share == pytest.approx(mass[label], abs=0.02)
        assert num == list(group_of.values()).count(label)
    most = max(mass, key=mass.get)
    assert page.caption("group-mass").startswith(f"Most often {most}: ")
    assert page.page.locator("#chart-group-return canvas").count() == 1
    toggle = page.page.locator("#chart-mass .button")
    scale = page.page.locator("#chart-mass .scale span")
    assert "along the level space" in scale.inner_text()
    toggle.focus()
    page.page.keyboard.press("Enter")
    assert toggle.get_attribute("aria-pressed") == "true"
    assert page.page.evaluate("charts.find((chart) => chart.spec.id === 'mass').heat.labels") == labels
    assert scale.inner_text() == "all replays of this group"


def test_a_level_in_full_with_its_picture_and_its_ancestors(mazes, visit):
    curriculum, url, lineage, maze, _ = mazes
    page = visit(url)
    child = lineage[-1]
    await_level(page, child)
    button = page.page.locator(f"tr[data-level='{child}'] button")
    button.focus()
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#level:not([hidden])")
    assert page.page.locator("#level-name").inner_text() == f"Level {child}"
    assert page.page.evaluate("document.activeElement.id") == "level-name"
    rank = page.page.locator("#level-facts").inner_text()
    weight = curriculum.weights()[curriculum.scores()[0].tolist().index(child)]
    assert "rank 1 · score 2.5" in rank
    assert f"P_replay {shown(100 * weight)} %" in rank
    assert repr(maze)[:100] in page.page.locator("#level-payload").inner_text()
    ancestors = page.page.locator("#level-ancestors li button")
    assert [text.strip() for text in ancestors.all_inner_texts()] == [str(level) for level in lineage[-2::-1]]
    assert page.page.locator("#level-past canvas").count() == 1
    page.page.wait_for_function(
        "() => [...document.querySelectorAll('#level img')].length === 3"
        " && [...document.querySelectorAll('#level img')].every((image) => image.naturalWidth === 72)"
    )
    pixel = page.page.evaluate(
        "() => { const canvas = document.createElement('canvas'), image = document.querySelector('#level-picture img');"
        "const draw = canvas.getContext('2d'); canvas.width = canvas.height = 72; draw.drawImage(image, 0, 0);"
        "return [...draw.getImageData(4, 4, 1, 1).data].slice(0, 3); }"
    )
    assert pixel == {"#": [58, 64, 78], ".": [240, 242, 246], "S": [79, 70, 229], "G": [21, 160, 90]}[maze[0][0]]
    ancestors.first.click()
    page.page.wait_for_function("id => document.querySelector('#level').dataset.level === String(id)", arg=lineage[-2])
    page.page.locator("#level-close").click()
    page.page.wait_for_selector("#level[hidden]", state="attached")
    assert page.page.evaluate("document.activeElement.closest('tr').dataset.level") == str(lineage[-2])


def test_the_saved_file_keeps_pictures_and_pasts(mazes, visit, tmp_path, browser):
    _, url, lineage, _, _ = mazes
    page = visit(url)
    await_level(page, lineage[-1])
    page.page.wait_for_function(SOME_PICTURE)
    with page.page.expect_download() as download:
        page.page.locator("#save").click()
    file = tmp_path / "curriculum.html"
    download.value.save_as(file)
    saved = Watched(browser, file.as_uri())
    saved.page.wait_for_function(SOME_PICTURE)
    saved.page.locator(f"tr[data-level='{lineage[-1]}'] button").click()
    saved.page.wait_for_selector("#level:not([hidden])")
    assert saved.page.locator("#level-past canvas").count() == 1
    assert not saved.page.locator("#chart-group-mass").is_hidden()
    assert saved.asked[0] == file.as_uri()
    assert all(url.startswith("data:") for url in saved.asked[1:])
    assert saved.complaints == []
    saved.context.close()


def test_what_enters_a_table_what_is_on_the_disk_and_what_waits_in_clients(tmp_path, visit):
    bind = f"ipc://{tmp_path}/plr.sock"
    config, plays = Config(levels="payloads", capacity=4), lambda *_: None
    with launch(config, bind, state_dir=tmp_path / "state", fsync="always"), viewing(bind) as (url, _):
        page = visit(url)
        with Trainer(bind) as trainer, LevelReplay(LevelEnv(), bind, set_level=plays, prefetch=3) as env:
            for score in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5):
                trainer.insert([f"maze {score}"], scores=[score])
            page.await_text("[data-tile=entered]", "1 turned away")
            assert page.tile("entered") == ("6", "2 left, 1 turned away")
            env.reset()
            page.await_text("[data-tile=prefetched]", "Asked ahead\n3")
            page.await_text("[data-tile=durable]", f"Not yet durable\n0\nof {trainer.counters()['commands']} commands")
            assert page.tile("journal")[0].endswith(" kB")


def test_what_the_server_is_asked_for(run, visit):
    address, _, url = run
    page = visit(url)
    page.page.wait_for_selector("#requests tr[data-op=push_scores]")
    with Trainer(address) as trainer:
        asked = trainer.timings()
    told = page.page.locator("#requests tr").evaluate_all(
        "rows => rows.map((row) => [row.dataset.op, row.cells[4].innerText])"
    )
    assert {op: int(errors) for op, errors in told}.items() <= {op: of["errors"] for op, of in asked.items()}.items()
    assert re.search(r"[\d.]+ requests? a second, 0 refused", page.page.locator("#server-note").inner_text())


# ---- that it lives


def test_updates_arrive_by_themselves(ipc, visit):
    with faults.daemon(ipc) as server, viewing(server.address) as (url, _):
        page = visit(url)
        page.await_text("#verdict", "Nobody has asked for a level yet")
        with LevelClient(server.address) as client, Trainer(server.address) as trainer:
            client.next(1)
            page.await_text("[data-tile=sessions]", "1 level in flight")
            assert page.tile("most_in_flight") == ("1", "at most; 1 is played")
            assert page.tile("replay_share")[1] == "of 1 draw"
            client.next(5)
            page.await_text("[data-tile=sessions]", "5 levels in flight")
            page.await_text("#verdict", "Levels are played, but none has a score yet")
            trainer.push_scores([3], [0.25])
            page.page.wait_for_selector("tr[data-level='3']")
            assert page.caption("spread").startswith("As spread out as 1 equally likely level; ")
            assert page.caption("mass") == "1 of 1 seen level takes 90 % of the replays."
            assert page.page.locator("#levels-note").inner_text().startswith("1 seen level. ")
            page.await_text("[data-tile=sessions]", "Clients\n2")


def test_a_server_that_is_killed_and_started_again(ipc, visit):
    with faults.daemon(ipc, "--levels", "0:20") as server, viewing(ipc) as (url, _):
        play(ipc, Curriculum(Config(levels=range(20))), rounds=3)
        page = visit(url)
        page.await_draws(24)
        server.kill()
        page.await_text("#verdict", "The server has not answered since")
        page.await_text("#connection", "no answer since")
        assert page.tile("replay_share")[1] == "of 24 draws"
        with faults.daemon(ipc, "--levels", "0:30"):
            play(ipc, Curriculum(Config(levels=range(30))), rounds=2)
            page.await_draws(16)
            page.await_text("#connection", "live")
            page.await_text("[data-tile=levels_seen]", "of 30")
            assert "not answered" not in page.verdict()


def test_a_viewer_that_is_stopped_and_started_again(run, browser):
    address, _, _ = run
    with viewing(address) as (url, process):
        page = Watched(browser, url)
        page.await_text("#connection", "live")
        process.terminate()
        page.await_text("#connection", "the viewer has stopped")
    with viewing(address, port=re.search(r":(\d+)/", url)[1]):
        page.await_text("#connection", "live")
    assert page.foreign() == []
    page.context.close()


def test_a_hidden_page_lets_go_of_its_stream(run, visit):
    page = visit(run[2])
    page.await_text("#connection", "live")
    page.page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true }); window.away = true;"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    assert page.page.evaluate("stream.readyState") == 2  # closed
    page.page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.page.wait_for_function("() => stream.readyState === 1")


# ---- several curricula


@pytest.fixture
def two(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('[curricula.train]\nlevels = "0:20"\n[curricula.eval]\nlevels = "0:9"\nstrategy = "sequential"\n')
    bind = f"ipc://{tmp_path}/plr.sock"
    command = faults.serve_command("--bind", bind, "--config", str(file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603  our own command
        server.stdout.readline()
        yield bind
        server.terminate()


def test_all_curricula_side_by_side_and_one_of_them_in_full(two, visit):
    play(two, Curriculum(Config(levels=range(20))), rounds=2, name="train")
    play(two, Curriculum(Config(levels=range(9), strategy="sequential")), rounds=3, name="eval")
    with viewing(two) as (url, _):
        page = visit(url)
        page.await_draws(16)
        cards = page.page.locator("#curricula button")
        assert [name.split("\n")[0] for name in cards.all_inner_texts()] == ["train", "eval"]
        assert page.page.locator("#name").inner_text() == "Curriculum train"
        cards.nth(1).focus()
        page.page.keyboard.press("Enter")
        page.await_draws(24)
        assert page.page.locator("#name").inner_text() == "Curriculum eval"
        assert cards.nth(1).get_attribute("aria-current") == "true"
        assert page.tile("levels_seen")[1] == "9 of 9"


# ---- that everybody can read it


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const { backgroundColor } = getComputedStyle(element);
      if (!backgroundColor.endsWith(", 0)") && backgroundColor !== "transparent") return light(backgroundColor);
    }
    return 1;
  };
  const texts = [...document.querySelectorAll("h1, h2, p, dt, dd, th, td, li, b, a, label, button")]
    .filter((element) => element.innerText.trim() && element.offsetParent);
  return texts.map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), ground(element)].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), element.innerText.slice(0, 40)];
  }).sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_it_is_readable(run, visit, width, height, scheme):
    page = visit(run[2], width=width, height=height, scheme=scheme)
    page.page.wait_for_function("() => document.querySelectorAll('#rows tr').length > 0")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    contrast, text = page.page.evaluate(CONTRAST)
    assert contrast >= READABLE, text
    smallest = page.page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, dt, dd, td, th, li')]"
        ".map((element) => parseFloat(getComputedStyle(element).fontSize)))"
    )
    assert smallest >= 12
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 380) == (scheme == "light")
    canvases = page.page.locator("#charts canvas")
    assert canvases.count() == 7
    assert all(box["width"] > 200 for box in (canvases.nth(i).bounding_box() for i in range(7)))


def test_everything_can_be_reached_by_keyboard(run, visit):
    page = visit(run[2])
    page.page.wait_for_function("() => document.querySelectorAll('#rows tr').length > 0")
    reached = []
    for _ in range(12):
        page.page.keyboard.press("Tab")
        reached.append(
            page.page.evaluate("document.activeElement.id || document.activeElement.innerText.slice(0, 12) ")
        )
        outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
        if reached[-1] == "Score":
            break
    assert reached[:2] == ["save", "find"]
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("th[aria-sort=descending] [data-sort=score]")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("th[aria-sort=ascending] [data-sort=score]")
    assert table(page)[0][2] == shown(page.page.evaluate("shown.curricula[selected].summary.score_min"))


# ---- to keep


def test_the_saved_file_says_the_same_without_a_viewer(run, visit, tmp_path, browser):
    page = visit(run[2])
    page.page.wait_for_function("() => document.querySelectorAll('#rows tr').length > 0")
    with page.page.expect_download() as download:
        page.page.locator("#save").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    saved = Watched(browser, file.as_uri())
    assert saved.foreign() == saved.complaints == []
    assert saved.asked == [file.as_uri()]
    assert saved.tile("effective_levels") == page.tile("effective_levels")
    assert saved.caption("gain") == page.caption("gain")
    assert saved.verdict().splitlines()[0] == page.verdict().splitlines()[0]
    assert table(saved)[:20] == table(page)[:20]
    assert saved.page.locator("#charts canvas").count() == 7
    saved.page.locator("[data-sort=id]").click()
    assert [int(row[0]) for row in table(saved)] == sorted(int(row[0]) for row in table(saved))
    saved.context.close()


def test_view_of_a_history_file_shows_the_run(run, visit, tmp_path):
    file = tmp_path / "history.json"
    with viewing(run[0], "--history", file) as (url, process):
        visit(url).page.wait_for_selector("#rows tr")
        process.terminate()
        process.wait()
    with viewing(file) as (url, _):
        page = visit(url)
        page.await_text("#connection", "as of")
        assert len(table(page)) == json.loads(file.read_text())["curricula"]["default"]["counters"]["levels_seen"]


# ---- what it costs


SENT = """['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


def peak_bytes(process):
    """The most memory that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def test_all_that_is_sent_and_kept_at_a_million_levels(tmp_path, visit):
    bind, num = f"ipc://{tmp_path}/plr.sock", 1_000_000
    with faults.daemon(bind, "--levels", f"0:{num}") as server, viewing(bind) as (url, process):
        with Trainer(server.address, timeout_s=60.0) as trainer:
            for begin in range(0, num, 2**17):
                ids = np.arange(begin, min(begin + 2**17, num))
                trainer.push_scores(ids, np.sin(ids))
        waiting = visit(url)
        waiting.page.wait_for_function(
            "num => shown?.curricula[selected]?.history?.columns?.levels_seen?.at(-1) === num", arg=num, timeout=60_000
        )
        page = visit(url).page
        page.wait_for_function("() => charts[0].plot && document.querySelectorAll('#rows tr').length === 50")
        assert page.evaluate(SENT) + page.evaluate("JSON.stringify(shown).length") <= ALL_BYTES
        assert peak_bytes(process) <= MEMORY_BYTES
