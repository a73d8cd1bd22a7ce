"""plr_server/__main__.py: every field as an option and in TOML, the ready line, stats, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

import faults
import numpy as np
import pytest

from plr_client import ConfigError, LevelClient, Trainer
from plr_server import Config, launch
from plr_server.__main__ import _configs, _joined, _parser, _viewer_keys, main
from plr_server.curriculum.presets import PRESETS

# Every field with a value that is not its default: Python, command line, TOML.
FIELDS = {
    "levels": (range(5, 50, 5), ["5:50:5"], '"5:50:5"'),
    "capacity": (50, ["50"], "50"),
    "strategy": ("gae", ["gae"], '"gae"'),
    "transform": ("power", ["power"], '"power"'),
    "temperature": (0.5, ["0.5"], "0.5"),
    "staleness_coef": (0.25, ["0.25"], "0.25"),
    "staleness_temperature": (2.0, ["2"], "2"),
    "eps": (0.125, ["0.125"], "0.125"),
    "replay_schedule": ("fixed", ["fixed"], '"fixed"'),
    "replay_prob": (0.75, ["0.75"], "0.75"),
    "min_fill_ratio": (0.5, [".5"], "0.5"),
    "alpha": (0.5, ["5e-1"], "5e-1"),
    "max_score_coef": (0.25, ["0.25"], "0.25"),
    "gamma": (0.99, ["0.99"], "0.99"),
    "gae_lambda": (1.0, ["1"], "1"),
    "window": (20, ["20"], "20"),
    "num_steps": (64, ["64"], "64"),
    "partial": ("stitch", ["stitch"], '"stitch"'),
    "robust": (True, [], "true"),
    "max_in_flight": (3, ["3"], "3"),
    "seed": (7, ["7"], "7"),
}


def flag(name):
    return f"--{name.replace('_', '-')}"


def configured(*arguments):
    return _configs(_parser().parse_args(_joined(["serve", *arguments])))["default"]


# ---- configuration


def test_the_table_has_every_field():
    assert list(FIELDS) == [field.name for field in dataclasses.fields(Config)]


def test_no_options_are_the_defaults():
    assert configured() == Config()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_an_option(name):
    value, words, _ = FIELDS[name]
    assert configured(flag(name), *words) == Config(**{name: value}) != Config()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_read_from_toml(name, tmp_path):
    value, _, toml = FIELDS[name]
    file = tmp_path / "plr.toml"
    file.write_text(f"{name} = {toml}\n")
    assert configured("--config", str(file)) == Config(**{name: value})


def test_toml(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('levels = [5, 6]\nstrategy = "gae"\nrobust = true\nalpha = 1\nseed = 3\n')
    config = configured("--config", str(file))
    assert config == Config(levels=(5, 6), strategy="gae", robust=True, seed=3)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"alpha = ", "Invalid value (at end of document)"),
        (b"alpha 0.5", "Expected '=' after a key"),
        (b"# \xff", "'utf-8' codec can't decode"),
        (None, "No such file or directory"),
    ],
    ids=["no value", "no equals", "no utf-8", "no file"],
)
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content, got):
    file = tmp_path / "plr.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        configured("--config", str(file))
    assert (raised.value.field, raised.value.expected) == ("config", f"a TOML file at {file}")
    assert got in raised.value.got


def test_an_option_wins_over_toml_and_leaves_the_rest(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('alpha = 0.5\nrobust = true\nlevels = [3, 4]\nstrategy = "gae"\n')
    config = configured("--config", str(file), "--alpha", "0.75", "--no-robust", "--levels", "1,2")
    assert config == Config(alpha=0.75, robust=False, levels=(1, 2), strategy="gae")


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        (["--levels", "0:3"], range(3)),
        (["--levels=-5:5"], range(-5, 5)),
        (["--levels", "-5:5"], range(-5, 5)),
        (["--levels=-1,-2"], (-1, -2)),
        (["--levels", "-1,-2"], (-1, -2)),
        (["--levels", "8,"], (8,)),
        (["--levels", "9:0:-3"], range(9, 0, -3)),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_levels_on_the_command_line(words, levels):
    assert configured(*words).levels == levels


def test_what_argparse_let_through_is_checked():
    with pytest.raises(ConfigError, match=r"^temperature: expected a finite number above 0, got 0.0$"):
        configured("--temperature", "0")


@pytest.mark.parametrize(("table", "where"), [("", ""), ("[curricula.maze]\n", "[curricula.maze] ")])
def test_an_unknown_toml_key_is_named_with_its_table_and_the_nearest_right_one(tmp_path, table, where):
    file = tmp_path / "plr.toml"
    file.write_text(f"{table}temprature = 0.5\n")
    with pytest.raises(ConfigError) as raised:
        configured("--config", str(file))
    assert str(raised.value) == f"{where}temprature: expected a field such as temperature, got an unknown name"


REFUSED = {
    "an unknown strategy": (["--strategy", "best"], "strategy: expected one of value_l1, gae, "),
    "an empty range": (["--levels", "5:5"], "START:STOP, START:STOP:STEP, a range, or a list of "),
    "a level twice": (["--levels", "1,1"], "at least one, got an id twice"),
    "too many levels": (["--levels", "0:1000000000000"], "levels: expected at most 2147483646 levels, got range("),
    "levels beyond int64": (["--levels", "0:99999999999999999999"], "START:STOP"),
    "a missing file": (
        ["--config", "/no/such.toml"],
        "config: expected a TOML file at /no/such.toml, got [Errno 2] No such",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_configuration_ends_with_its_reason_and_exit_code_1(name, capsys, ipc):
    words, text = REFUSED[name]
    assert main(["serve", "--bind", ipc, *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("plr-server: ")
    assert text in err
    assert faults.left_beside(ipc) == []


def test_bad_toml_on_the_real_command_line(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text("alpha = = 1\n")
    message = faults.refused("--bind", f"ipc://{tmp_path}/plr.sock", "--config", str(file))
    assert message.startswith(f"plr-server: config: expected a TOML file at {file}, got Invalid value (at line 1")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--alpha", "much"], "argument --alpha: invalid float value: 'much'"),
        (["--num-steps", "1.5"], "argument --num-steps: invalid int value: '1.5'"),
        (["--colour", "red"], "unrecognized arguments: --colour red\n"),
        (["--temprature", "0.5"], "unrecognized arguments: --temprature 0.5 (did you mean --temperature?)\n"),
        (["--state-dri=x", "y"], "unrecognized arguments: --state-dri=x y (did you mean --state-dir?)\n"),
        (["--view", "99999"], "argument --view: expected a port from 0 (a free one) to 65535, got '99999'"),
        (["--view", "-1"], "argument --view: expected"),
        (["--view", "http"], "argument --view: expected a port from 0 (a free one) to 65535, got 'http'"),
    ],
    ids=["no float", "no int", "no such option", "a typo", "another", "no port", "none below 0", "no number"],
)
def test_words_that_are_no_options_are_a_usage_error(words, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *words])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "the following arguments are required: command" in capsys.readouterr().err


def test_help_explains_every_field_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # one line for each
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        assert flag(field.name) in text
        assert " ".join(Config.docs()[field.name].split()) in text
        assert f"(default: {'0:200' if field.name == 'levels' else field.default})" in text
    for words in (
        "--bind ADDRESS",
        "--insecure",
        "--max-frame-bytes BYTES",
        "--config FILE",
        "plr-server ready at ADDRESS",
    ):
        assert words in text
    for name, preset in PRESETS.items():
        assert f"{name}: strategy {preset.fields['strategy']}, " in text
        assert f"Source: {preset.source}. Measured: {preset.measured}." in text
    for hidden in ("--config-json", "--ready-fd", "--parent-pid", "--own-folder"):
        assert hidden not in text


def test_what_was_set_in_vain_is_told_at_the_start_and_served(ipc, tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('alpha = 0.5\n[curricula.train]\n[curricula.maze]\nstrategy = "learnability"\ngamma = 0.9\n')
    command = faults.serve_command("--bind", ipc, "--config", str(file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout.readline().startswith("plr-server ready at ")
        process.terminate()
        said = process.communicate(timeout=faults.DEADLINE_S)[1].splitlines()
    assert said[:2] == [
        (
            "plr-server: [curricula.maze] alpha: 0.5 changes nothing: learnability remembers by its window; only "
            "push_scores reads alpha"
        ),
        "plr-server: [curricula.maze] gamma: 0.9 changes nothing: learnability discounts nothing",
    ]


# ---- a real server


def test_serve_says_when_it_is_ready_and_plays_what_it_was_told(ipc, tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('strategy = "sequential"\ntransform = "power"\nlevels = [1, 2]\n')
    with faults.daemon(ipc, "--config", str(file), "--levels", "7,5,6") as server:
        assert server.ready == f"plr-server ready at {ipc} (3 levels, sequential, power)\n"
        with LevelClient(ipc) as client:
            assert [assignment.level for assignment in client.next(4)] == [7, 5, 6, 7]


def test_a_preset_is_served(ipc):
    with faults.daemon(ipc, "--preset", "learnability", "--levels", "0:7") as server:
        assert server.ready == f"plr-server ready at {ipc} (7 levels, learnability, power)\n"


def test_one_level_is_no_levels(ipc):
    with faults.daemon(ipc, "--levels", "7,") as server:
        assert server.ready == f"plr-server ready at {ipc} (1 level, value_l1, rank)\n"


def test_the_ready_line_names_the_real_port():
    with faults.daemon("tcp://127.0.0.1:0") as server:
        assert int(server.address.rpartition(":")[2]) > 0


@pytest.fixture
def played(server):
    with LevelClient(server.address) as client, Trainer(server.address) as trainer:
        client.next(3)
        trainer.push_scores([1, 2], [0.5, 1.0])
        yield trainer


def test_stats_for_people(server, played, capsys):
    assert main(["stats", server.address]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    stats = played.stats()
    assert list(lines) == list(stats)
    assert (lines["strategy"], lines["levels"], lines["levels_seen"]) == ("value_l1", "10", "2")
    assert lines["mean_score"] == "0.75"
    assert lines["effective_levels"] == f"{stats['effective_levels']:.4g}"


def test_stats_for_programs_by_the_installed_command(server, played):
    command = Path(sys.executable).with_name("plr-server")
    done = subprocess.run(  # noqa: S603  our own command
        [command, "stats", server.address, "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=faults.DEADLINE_S,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    expected = played.stats()
    assert said.pop("sessions") == expected.pop("sessions") + 1
    assert said == expected


def test_stats_of_nobody(ipc, capsys):
    assert main(["stats", ipc, "--timeout-s", "0.2"]) == 1
    assert re.fullmatch(
        rf"plr-server: expected a reply from {re.escape(ipc)}, got none in \d\.\d s and 1 attempt; "
        r"is plr-server running there\? \(plr-server serve --bind ADDRESS\)\n",
        capsys.readouterr().err,
    )


def test_a_ctrl_c_in_stats_is_no_traceback(ipc):
    with faults.daemon(ipc) as server:
        server.process.send_signal(signal.SIGSTOP)
        code = (
            "import signal, sys; from plr_server.__main__ import main;"
            "signal.signal(signal.SIGINT, signal.default_int_handler);"
            "signal.setitimer(signal.ITIMER_REAL, 0.2);"
            "signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT));"
            "sys.exit(main(['stats', sys.argv[1]]))"
        )
        done = subprocess.run(  # noqa: S603  our own command
            [sys.executable, "-c", code, ipc], capture_output=True, text=True, check=False, timeout=faults.DEADLINE_S
        )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"plr-server {version('plr-server')}\n"


def test_stats_of_no_address(capsys):
    assert main(["stats", "localhost"]) == 1
    assert capsys.readouterr().err == "plr-server: address: expected ipc://PATH or tcp://HOST:PORT, got 'localhost'\n"


def test_an_option_wins_in_every_curriculum(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('alpha = 0.5\n[curricula.train]\nstrategy = "min_margin"\n[curricula.eval]\nlevels = "0:9"\n')
    configs = _configs(_parser().parse_args(["serve", "--config", str(file), "--strategy", "uniform"]))
    assert configs == {
        "train": Config(alpha=0.5, strategy="uniform"),
        "eval": Config(alpha=0.5, strategy="uniform", levels=range(9)),
    }


def test_a_preset_gives_way_to_the_file_and_the_options(tmp_path):
    file = tmp_path / "plr.toml"
    file.write_text('preset = "robust"\nreplay_prob = 0.9\n')
    assert configured("--preset", "learnability") == Config.preset("learnability")
    assert configured("--config", str(file)) == Config.preset("robust", replay_prob=0.9)
    both = configured("--config", str(file), "--preset", "accel", "--temperature", "0.2")
    assert both == Config.preset("accel", replay_prob=0.9, temperature=0.2)


# ---- view


@contextlib.contextmanager
def viewing(*words):
    """Runs `plr-server view WORDS --port 0`, from the line that names its page on."""
    command = [sys.executable, "-m", "plr_server", "view", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own command
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"plr-server view at (http://127\.0\.0\.1:\d+/)\n", line)
        assert url, f"not the line that names the page: {line!r}"
        yield process, url[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def get(url):
    with urllib.request.urlopen(url, timeout=faults.DEADLINE_S) as reply:  # noqa: S310  our own page
        return reply.read().decode()


def test_view_shows_a_server_until_it_is_told_to_stop_and_its_history_can_be_shown_without_one(server, tmp_path):
    file = tmp_path / "history.json"
    with viewing(server.address, "--history", file) as (process, url):
        assert "<title>Curriculum</title>" in get(url)
        faults.eventually(lambda: '"draws"' in get(f"{url}save"), "it has read the counters")
        process.send_signal(signal.SIGTERM)
        assert process.wait(faults.DEADLINE_S) == 0
    with viewing(file) as (process, url):
        assert server.address in get(url)
        process.send_signal(signal.SIGINT)
        assert process.wait(faults.DEADLINE_S) == 0


def test_view_of_what_is_no_history_and_no_address(tmp_path, capsys):
    assert main(["view", "127.0.0.1:5555"]) == 1
    assert "expected an address, tcp://HOST:PORT or ipc://PATH, or a file" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[]")
    assert main(["view", str(tmp_path / "other.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "plr-server: history: expected a history that plr-server view --history wrote, format 1, got "
    )


@pytest.mark.parametrize("option", ["group", "render"])
def test_view_refuses_a_function_that_is_none(option, capsys):
    assert main(["view", "ipc:///nowhere", f"--{option}", "no_such_module:rooms", "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"plr-server: {option}: expected module:function that can be imported (from the folder")


def test_view_opens_the_page_where_it_is_asked_to(server, monkeypatch, capsys):
    opened = []

    def opens(url):
        opened.append(url)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("webbrowser.open", opens)
    assert main(["view", server.address, "--port", "0", "--open"]) == 0
    assert capsys.readouterr().out == f"plr-server view at {opened[0]}\n"


def test_serve_view_shows_the_page_in_a_process_of_its_own_that_ends_with_the_server(ipc):
    with faults.daemon(ipc, "--view", "0") as server:
        line = server.process.stdout.readline()
        url = re.fullmatch(r"plr-server view at (http://\S+)\n", line)[1]
        assert "<title>Curriculum</title>" in get(url)
        (viewer,) = children(server.process.pid)
        server.stop()
        assert faults.gone(viewer)


def test_serve_view_with_the_port_of_the_server_does_not_start():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    said = faults.refused("--bind", f"tcp://127.0.0.1:{port}", "--view", str(port))
    assert said == f"plr-server: view: expected another port than that of --bind, got {port}\n"


def test_serve_view_with_a_port_that_is_taken_does_not_start(ipc):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = faults.refused("--bind", ipc, "--view", str(port))
    assert said == (
        f"plr-server: view: expected a free port for the page (0 takes any), got {port} (Address already in use)\n"
    )
    assert faults.left_beside(ipc) == []


def test_a_viewer_does_not_outlive_a_server_that_is_killed(ipc):
    with faults.daemon(ipc, "--view", "0") as server:
        server.process.stdout.readline()
        (viewer,) = children(server.process.pid)
        server.kill()
        faults.eventually(lambda: faults.gone(viewer), "the viewer ended")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


# ---- keys


def test_keygen_makes_the_one_file_that_a_client_needs_and_lists_who_may_do_what(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "keys"
    for name, role in (("env-1", "worker"), ("learner", "trainer"), ("boss", "operator")):
        assert main(["keygen", str(folder), "--role", role, "--name", name]) == 0
        assert capsys.readouterr().out == f"{folder}/{name}.key\n"
    assert main(["keygen", str(folder)]) == 0
    assert capsys.readouterr().out == (
        "env-1: worker, asks for levels\n"
        "learner: trainer, asks for levels, pushes, inserts and reads\n"
        "boss: operator, all of that, saves, and sends score functions\n"
    )
    with launch(Config(levels=range(7)), keys=folder) as server:
        for keys, said in (
            ("env-1", "stats: expected the key of a trainer"),
            ("none", "keys: expected a file made"),
        ):
            assert main(["stats", server.address, "--keys", f"{folder}/{keys}.key"]) == 1
            assert capsys.readouterr().err.startswith(f"plr-server: {said}")
        assert main(["stats", server.address, "--json", "--keys", f"{folder}/learner.key"]) == 0
        assert json.loads(capsys.readouterr().out)["levels"] == 7
        monkeypatch.setenv("PLR_KEYS", f"{folder}/boss.key")
        assert main(["stats", server.address, "--json"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "env"], "role: expected --role beside --name, got none"),
        (["--role", "worker"], "name: expected --name beside --role, got none"),
        (["--role", "worker", "--name", "../env"], "name: expected 1 to 64 letters, "),
        ([], "keys: expected a folder made by plr-server keygen DIR --role ROLE --name NAME, got "),
    ],
)
def test_keygen_refuses_what_it_cannot_do(tmp_path, words, said, capsys):
    assert main(["keygen", str(tmp_path / "keys"), *words]) == 1
    assert capsys.readouterr().err.startswith(f"plr-server: {said}")
    assert not (tmp_path / "keys").exists()


def test_serve_without_the_keys_that_it_is_to_ask_for_does_not_start(tmp_path, capsys, ipc):
    assert main(["serve", "--bind", ipc, "--keys", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "plr-server: keys: expected a folder made by plr-server keygen DIR --role ROLE --name NAME, got "
        f"{tmp_path}, which has no server.key\n"
    )


def test_serve_view_shows_a_server_with_keys(ipc, tmp_path, capsys):
    folder = tmp_path / "keys"
    main(["keygen", str(folder), "--role", "worker", "--name", "env"])
    with faults.daemon(ipc, "--view", "0", "--keys", str(folder)) as server:
        line = server.process.stdout.readline()
        url = re.fullmatch(r"plr-server view at (http://\S+)\n", line)[1]
        faults.eventually(lambda: '"lost_s": null' in get(f"{url}save"), "the page reads the server")
        server.stop()
    assert _viewer_keys(folder) == folder / "viewer.key"  # made once
    capsys.readouterr()
    main(["keygen", str(folder)])
    assert "viewer: trainer, " in capsys.readouterr().out


# ---- state directories


@pytest.fixture
def state_dir(tmp_path):
    """What a server of two curricula left that was killed: 13 commands, a hello, five pushes, a goodbye; again."""
    folder, bind, config = (
        tmp_path / "state",
        f"ipc://{tmp_path}/plr.sock",
        Config(levels=range(10), strategy="external"),
    )
    with launch({"train": config, "eval": config}, bind, state_dir=folder) as server:
        for name in ("train", "eval"):
            with Trainer(bind, curriculum=name) as trainer:
                for level in range(5):
                    trainer.push_scores([level], [level + 1.0])
                if name == "eval":
                    server.process.kill()
                    server.process.wait()
    return folder


def test_inspect_shows_what_a_state_directory_holds(state_dir, capsys):
    assert main(["inspect", str(state_dir)]) == 0
    said = capsys.readouterr().out
    assert "of the state after 0 commands" in said
    assert "commands  13" in said
    assert main(["inspect", "--json", str(state_dir)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["commands"], report["damage"], report["journals"][0]["numpy"]) == (13, [], np.__version__)
    assert main(["inspect", "--verify", str(state_dir)]) == 0
    assert capsys.readouterr() == ("", "")


def test_inspect_verify_says_what_is_wrong_and_the_exit_code_does(state_dir, capsys):
    (journal,) = state_dir.glob("journal*")
    flip(journal, journal.stat().st_size // 2)
    for options in ([], ["--verify"], ["--json"]):
        assert main(["inspect", *options, str(state_dir)]) == 1
    said, errors = capsys.readouterr()
    assert "at least" in json.loads(said.splitlines()[-1])["damage"][0]
    assert "got damage" in errors


def test_replay_rebuilds_the_state_at_any_command(state_dir, capsys):
    for until, train, in_eval in ((0, 0, 0), (3, 2, 0), (6, 5, 0), (10, 5, 2), (13, 5, 5)):
        assert main(["replay", str(state_dir), "--until", str(until), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["commands"] == until
        assert [said["curricula"][name]["scores"] for name in ("train", "eval")] == [train, in_eval]
    assert main(["replay", str(state_dir)]) == 0
    assert "after 13 of 13 commands" in capsys.readouterr().out


@pytest.mark.parametrize("until", ["-1", "14"])
def test_replay_refuses_a_command_that_is_not_there(state_dir, capsys, until):
    assert main(["replay", str(state_dir), "--until", until]) == 1
    assert capsys.readouterr().err == (
        f"plr-server: until: expected a command from 0 (the newest snapshot) to 13 (the newest command), got {until}\n"
    )


def test_replay_after_a_restart_begins_at_the_snapshot_and_says_so(state_dir, capsys):
    config = Config(levels=range(10), strategy="external")
    with launch({"train": config, "eval": config}, f"ipc://{state_dir.parent}/plr.sock", state_dir=state_dir):
        pass  # it takes a snapshot at its end
    assert main(["replay", str(state_dir), "--until", "5"]) == 1
    assert "from 13 (the newest snapshot) to 13 (the newest command), got 5" in capsys.readouterr().err
    assert main(["replay", str(state_dir)]) == 0
    assert "after 13 of 13 commands" in capsys.readouterr().out


def test_what_is_no_state_directory_is_said(tmp_path, capsys):
    for command in ("inspect", "replay"):
        assert main([command, str(tmp_path / "nowhere")]) == 1
        assert "expected a state directory that can be read" in capsys.readouterr().err
        assert main([command, str(tmp_path)]) == 1  # as where a disk is not mounted
        assert "which has no journal and no snapshot" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--fsync=always", "--fsync=interval", "--accept-loss", "--take-over"])
def test_options_of_a_state_directory_are_refused_where_there_is_none(capsys, option):
    assert main(["serve", "--bind", "tcp://127.0.0.1:0", option]) == 1
    assert f"expected --state-dir DIR beside {option.partition('=')[0]}, got none" in capsys.readouterr().err


def test_a_damaged_state_directory_is_served_only_where_the_loss_is_accepted(tmp_path):
    bind, folder = f"ipc://{tmp_path}/plr.sock", str(tmp_path / "state")
    options = ("--levels", "0:10", "--strategy", "external", "--state-dir", folder)
    with faults.daemon(bind, *options) as server, Trainer(server.address) as trainer:
        trainer.push_scores([1], [1.0])
        (journal,) = Path(folder).glob("journal*")
        first = journal.stat().st_size
        trainer.push_scores([2], [2.0])
        server.kill()
        flip(journal, first - 1)
        said = faults.refused("--bind", bind, *options)
        assert f"{journal}: expected the record after command 1 as it was written, got damage" in said
        assert "At stake: at least 2 commands" in said
        assert "--accept-loss" in said
        with faults.daemon(bind, *options, "--accept-loss") as again:
            with Trainer(again.address) as another:
                assert another.stats()["scores"] == 0
            assert trainer.stats()["scores"] == 2  # it has sent again what was never sure to be on the disk
            assert (Path(folder) / f"{journal.name}.broken").exists()
            again.stop()


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
