"""The learning study: the fast MiniGrid is the stock one, a run is what it says, and survives being killed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "contenders"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "learning"))

import equal
import jobs
import mazes
import study
from candidates import CANDIDATES, CandidateWorld, area_on_lock
from cost import InProcessWorld
from evidence import Runs, steps_to_reach, write_evidence
from fastgrid import FastMiniGrid
from intervals import holm, interquartile_mean, interval, probability_of_improvement, welch
from lockstep import KilledWorld, course_of, kills_in
from run import ALL, run, trained
from study import Job
from tasks import TASKS

from plr_server.curriculum.presets import PRESETS

STUDY = Path(study.__file__).parent
SMALL = Job("multiroom", "learnability", 3)
NUM_UPDATES = 3


# ---- the fast MiniGrid


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_random_play_is_the_same_in_the_stock_envs(task):
    """Some 10^5 steps over all tasks; `equal` of the study plays 10^6."""
    compared = equal.play(task, 3_000_000, 12_000)
    assert compared.steps >= 12_000


@pytest.mark.parametrize(("task", "updates"), [("unlock", 100), ("multiroom", 60)])
def test_the_play_of_a_trained_agent_is_the_same_in_the_stock_envs(task, updates):
    """An agent that wins meets what random play does not: opened doors, carried keys, the goal."""
    compared = equal.play(TASKS[task], 3_000_000, 10_000, trained(Job(task, "learnability", 0), updates))
    assert compared.won > 20


def test_a_difference_is_noticed(monkeypatch):
    right = FastMiniGrid.step

    def step(env, actions):
        observations, rewards, *rest = right(env, actions)
        return observations, rewards + 1e-9, *rest

    monkeypatch.setattr(FastMiniGrid, "step", step)
    with pytest.raises(equal.Difference, match="reward, end, time limit: expected"):
        equal.play(TASKS["lava"], 3_000_000, 100)


# ---- mazes


def test_a_maze_is_seen_as_it_was_made():
    rng = np.random.default_rng(0)
    for maze in (mazes.random_maze(rng) for _ in range(200)):
        walls = mazes.walls_of(maze).reshape(mazes.SIZE, mazes.SIZE)
        assert walls.sum() <= mazes.MAX_WALLS
        for x, y in (maze["start"][:2], maze["goal"]):
            assert not walls[y, x]
        grid = mazes.as_level(maze)["grid"][1:-1, 1:-1]
        assert ((grid == mazes.OUTSIDE) == walls).all()
        child = mazes.edited(maze, rng)
        assert (mazes.walls_of(child) != mazes.walls_of(maze)).sum() <= mazes.MAX_EDITS
        assert (child["start"], child["goal"]) == (maze["start"], maze["goal"])


def test_the_way_through_is_the_shortest():
    walls = np.zeros((mazes.SIZE, mazes.SIZE), np.bool_)
    walls[1, :-1] = True  # a wall with a gap at its end
    assert mazes.shortest_path(walls, 0, 0, 0, 2) == 2 * (mazes.SIZE - 1) + 2
    walls[1, -1] = True
    assert mazes.shortest_path(walls, 0, 0, 0, 2) == -1


@pytest.mark.parametrize("arm", ["learnability", "uniform"])
def test_a_maze_run_inserts_what_it_plays(arm):
    rows = list(run(Job("maze", arm, 3), num_updates=NUM_UPDATES))
    final = rows[-1 - len(mazes.DIFFICULTIES)]
    assert (final["evaluation"], final["difficulty"]) == ("final", ALL)
    assert final["heldout_episodes"] == study.NUM_HELDOUT * study.FINAL_EPISODES
    assert final["seen"] > 50


def test_edited_mazes_enter_with_their_parents():
    job = Job("maze-accel", "learnability", 3)
    world, parents = mazes.MazeWorld(job), set()
    insert = world._insert
    world._insert = lambda trainer, new, of=None: (parents.update(of or ()), insert(trainer, new, of))
    list(run(job, world, num_updates=NUM_UPDATES))
    assert parents
    assert parents <= world._difficulty_of.keys()


# ---- a run


def rows_of(world_of, job=SMALL, num_updates=NUM_UPDATES):
    rows = list(run(job, world_of(job) if world_of else None, num_updates))
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def same(rows, others):
    return len(rows) == len(others) and all(
        row.keys() == other.keys() and all(row[name] == other[name] or row[name] != row[name] for name in row)
        for row, other in zip(rows, others, strict=True)
    )


@pytest.mark.parametrize("arm", study.ARMS)
def test_an_arm_learns_the_same_through_the_server_and_in_the_process(arm):
    """In lock-step, every level and every weight of the network are the same, and so is every row."""
    job = Job("multiroom", arm, 3)
    assert same(rows_of(None, job), rows_of(InProcessWorld, job))


@pytest.mark.parametrize("arm", ["learnability", "value_l1"])
def test_a_server_that_is_killed_changes_nothing_of_what_is_learnt(arm):
    """Killed between two levels, and right before a push; the levels, the curve and the weights are the same bits."""
    job, updates = Job("multiroom", arm, 3), 4
    killed = KilledWorld(job, kills_in(updates, 2))
    in_process = course_of(InProcessWorld(job), updates)
    assert course_of(killed, updates).differs_from(in_process) == []
    assert killed.killed == 2
    assert len(np.unique(in_process.levels)) > 100
    assert np.count_nonzero(in_process.weights) > 100


def test_courses_of_two_seeds_differ():
    courses = [course_of(InProcessWorld(Job("multiroom", "value_l1", seed)), 2) for seed in (3, 4)]
    assert courses[0].differs_from(courses[1]) == ["levels", "curve", "params", "scores", "weights"]


def test_a_rule_of_the_trainers_plays_as_the_servers_strategy_does():
    """What is tried as a rule outside of the server would be the same inside."""
    name = "learnability as a rule"
    areas = {each: area_on_lock(CANDIDATES[each], 8, 0.8, 1000) for each in ("learnability", name, "window 5")}
    assert areas["learnability"] == areas[name] != areas["window 5"]
    job = Job("unlock", "learnability", 3)
    rows = [list(run(job, CandidateWorld(job, CANDIDATES[each]), 12)) for each in ("learnability", name)]
    assert same(*([{**row, "wall_s": 0} for row in each] for each in rows))


def test_another_seed_is_another_run():
    assert not same(rows_of(InProcessWorld), rows_of(InProcessWorld, Job("multiroom", "learnability", 4)))


def test_rows_add_up():
    rows = rows_of(InProcessWorld)
    names = TASKS["multiroom"].difficulties
    assert [row["difficulty"] for row in rows[: len(names) + 1]] == [ALL, *names]
    for at in range(0, len(rows), len(names) + 1):
        total, *parts = rows[at : at + len(names) + 1]
        for field in ("heldout_episodes", "train_episodes", "seen"):
            assert sum(row[field] for row in parts) == total[field]
        assert math.isclose(sum(row["mass"] for row in parts), total["mass"], abs_tol=1e-12)
        returns = [row["heldout_return"] * row["heldout_episodes"] for row in parts if row["heldout_episodes"]]
        assert math.isclose(sum(returns), total["heldout_return"] * total["heldout_episodes"])
    assert rows[-1]["evaluation"] == "final"
    steps = [row["steps"] for row in rows]
    assert all(before <= after for before, after in pairwise(steps))


# ---- the queue

WORK = """
import sys
from pathlib import Path
sys.path[:0] = {folders!r}
import jobs, run
from study import Job
true_run = run.run
def short(job):
    rows = true_run(job, num_updates=3)
    yield next(rows)
    print("begun", job, flush=True)
    if {stops}:
        sys.stdin.read()
    yield from rows
jobs.run = short
for job in jobs.work([Job("lava", "uniform", seed) for seed in range(2)], Path({results!r})):
    print("done", job, flush=True)
"""


def worker(results, *, stops):
    script = WORK.format(folders=sys.path[:3], results=str(results), stops=stops)
    environment = os.environ | {"PYTHONPATH": str(STUDY.parents[1])}
    command = [sys.executable, "-c", script]
    return subprocess.Popen(  # noqa: S603  our own command
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def without_times(path):
    head, rows = jobs.read(path)
    return head | {"commit": ""}, [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def test_two_processes_share_the_work_and_a_killed_run_is_done_again(tmp_path):
    with worker(tmp_path, stops=True) as killed:
        assert killed.stdout.readline() == "begun lava.uniform.0\n"
        with worker(tmp_path, stops=False) as other:  # takes what is not claimed
            said, _ = other.communicate()
        assert said.split("\n")[:2] == ["begun lava.uniform.1", "done lava.uniform.1"]
        assert not (tmp_path / "lava.uniform.0.csv").exists()
        killed.kill()
    with worker(tmp_path, stops=False) as again:
        said, _ = again.communicate()
    assert said.split("\n")[:2] == ["begun lava.uniform.0", "done lava.uniform.0"]
    whole = tmp_path / "whole"
    with worker(whole, stops=False) as undisturbed:
        undisturbed.communicate()
    for seed in range(2):
        name = f"lava.uniform.{seed}.csv"
        head, rows = without_times(tmp_path / name)
        expected_head, expected = without_times(whole / name)
        assert head == expected_head
        assert same(rows, expected)
    with worker(tmp_path, stops=False) as idle:
        assert idle.communicate()[0] == ""


def test_a_counted_run_wants_the_tree_as_committed(monkeypatch):
    monkeypatch.setattr(
        jobs, "_git", lambda *arguments: " M plr_client/trainer.py" if arguments[0] == "status" else "abc"
    )
    with pytest.raises(jobs.Unregistered, match=r"lava\.uniform\.100"):
        jobs.about(Job("lava", "uniform", 100))
    assert jobs.about(Job("lava", "uniform", 99))["changed"]


# ---- what is registered


def test_the_protocol_says_what_the_study_does():
    """Its tables name every task and arm, with the numbers and fields that the code has."""
    text = (STUDY / "protocol.md").read_text()
    for name, plan in study.STUDY.items():
        kept = f"{plan.num_levels:,}".replace(",", " ")
        line = f"| {name} | {plan.role} | {kept} | {plan.steps / 1e6:g} M | {plan.num_seeds} |"
        assert line in text, line
    for name, fields in study.ARMS.items():
        said = ", ".join(f"{field}={value!r}" for field, value in fields.items()).replace("'", '"')
        assert f"| {name} | `{said}` |" in text, said


def test_what_is_measured_of_a_preset_is_measured_with_its_fields():
    assert study.ARMS["learnability"] == PRESETS["learnability"].fields


def test_rows_that_are_written_do_not_make_the_tree_a_changed_one():
    changed = jobs._git("status", "--porcelain", "--", *jobs.MEASURED)
    result = STUDY / "results" / "no.such.run.csv"
    result.parent.mkdir(exist_ok=True)
    try:
        result.touch()
        assert jobs._git("status", "--porcelain", "--", *jobs.MEASURED) == changed
    finally:
        result.unlink()


def test_counted_and_tuning_runs_share_no_level():
    counted, tuning = Job("keys16", "uniform", 100), Job("keys16", "uniform", 99)
    ranges = [counted.levels(), counted.heldout(), tuning.levels(), tuning.heldout()]
    seen = [level for each in ranges for level in each]
    assert len(set(seen)) == len(seen)
    assert counted.levels().start == 100_000
    assert counted.heldout() == range(5_000_000, 5_001_000)
    registered = list(study.registered())
    assert len(registered) == sum(plan.num_seeds * len(plan.arms) for plan in study.STUDY.values())
    added = list(study.exploratory())
    assert len(added) == study.EXPLORATORY_SEEDS * sum(len(tasks) for tasks in study.EXPLORATORY.values())
    assert all(job.counted for job in (*registered, *added))
    assert not {job.seed for job in registered} & {job.seed for job in added}
    assert not {job.arm for job in registered} & study.EXPLORATORY.keys()
    assert not any(job.counted for job in study.quick())


# ---- the statistics, beside scipy's


def test_statistics_are_those_of_scipy_and_rliable():
    few, many = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.9, 0.3, 0.55, 0.62, 0.71, 0.4, 0.58])
    assert math.isclose(welch(few, many), 0.3544460950511366)  # scipy.stats.ttest_ind(equal_var=False)
    assert math.isclose(interquartile_mean([few, many]), 0.5157142857142858)  # scipy.stats.trim_mean(..., 0.25)
    better = (0 + 1.5 + 1 + 6) / 28  # scipy.stats.mannwhitneyu, over the number of pairs
    assert math.isclose(probability_of_improvement([few], [many]), better)
    assert np.allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert welch(few, few + 0.0) == 1.0


def test_the_bootstrap_covers_what_it_should():
    """Of 200 intervals of a known mean, most hold it; tasks are resampled apart, so their difference is no spread."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = interval(interquartile_mean, [rng.normal(size=20)], seed=1)
        held += low <= 0 <= high
    assert 175 <= held <= 200
    low, high = interval(interquartile_mean, [np.full(8, 0.0), np.full(8, 1.0)])
    assert low == high == 0.5


# ---- tables and figures


def test_one_command_makes_tables_and_figures_from_the_rows(tmp_path):
    """Of short runs on lava, which stand here for the primary tasks too."""
    for arm in ("uniform", "learnability"):
        for seed in range(2):
            job = Job("lava", arm, seed)
            rows = list(run(job, InProcessWorld(job), NUM_UPDATES))
            for task in ("lava", *(task for task, plan in study.STUDY.items() if plan.role == "primary")):
                jobs.write(tmp_path / f"{task}.{arm}.{seed}.csv", jobs.about(job) | {"task": task}, rows)
    page = tmp_path / "evidence.md"
    write_evidence(tmp_path, page)
    text = page.read_text()
    assert "0 of its 760 registered runs are done.**" in text
    assert "\nHere are 16 runs, seeds 0 to 1, on commit " in text
    assert text.index("## The primary tasks together") < text.index("## keys16 (primary, 12 M steps)")
    assert "| learnability | 2 |" in text[text.index("## lava (control, 4 M steps)") :]
    final = [jobs.read(tmp_path / f"lava.uniform.{seed}.csv")[1][-5]["heldout_return"] for seed in range(2)]
    assert f"| uniform | 2 | {np.mean(final):.3f} [" in text
    assert text.index("## What was aimed at") < text.index("## keys16")
    assert "| intervals apart | on 2 of 3 | on " in text
    figures = re.findall(r"\]\((evidence/.*\.png)\)", text)
    assert len(figures) == 1 + 2 * 4  # of all tasks, and two of each
    for name in figures:
        assert (tmp_path / name).stat().st_size > 5_000


def test_no_results_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected results \(\*\.csv\)"):
        write_evidence(tmp_path, tmp_path / "evidence.md")


def test_steps_to_reach_are_between_two_evaluations():
    runs = object.__new__(Runs)
    runs.steps, runs.curve = np.array([0.0, 100.0, 200.0]), np.array([[0.0] * 4, [0.2] * 4, [0.6] * 4])
    assert steps_to_reach(runs, 0.4) == 150.0
    assert steps_to_reach(runs, 0.0) == 0.0
    assert steps_to_reach(runs, 0.7) == math.inf
