"""Trains a small agent on 400 MiniGrid levels while the curriculum decides which level each episode plays.

Run it with `make demo`. It prints where a live page shows the run, then what the curriculum did. It leaves a picture,
and beside it the page as a file. The lines marked PLR are all that Prioritized Level Replay asks of a training script;
the rest is a plain PPO agent, in numpy.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads would only disturb the envs

import gymnasium as gym
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from minigrid.envs import MultiRoomEnv
from minigrid.wrappers import ImgObsWrapper

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

LEVELS = range(400)  # a level is a seed: it decides how many rooms lie on the way to the goal, and how they lie
ROOT = Path(__file__).parents[1]
HELD_OUT = range(10_000, 10_064)  # levels that are never trained on
ROOMS = range(2, 7)
ACTIONS = np.array([0, 1, 2, 5])  # turn left, turn right, go forward, open or close a door
NUM_ENVS, NUM_STEPS, GAMMA, GAE_LAMBDA, CLIP = 8, 128, 0.99, 0.95, 0.2


def make_env() -> gym.Env:
    return ImgObsWrapper(MultiRoomEnv(ROOMS[0], ROOMS[-1], maxRoomSize=5))


@functools.cache
def _env_to_look_at() -> gym.Env:
    return MultiRoomEnv(ROOMS[0], ROOMS[-1], maxRoomSize=5, render_mode="rgb_array")


def rooms_of(level: int) -> str:
    """Returns the group of a level on the live page: `plr-server view --group examples.minigrid_demo:rooms_of`."""
    env = _env_to_look_at()
    env.reset(seed=level)
    return f"{len(env.unwrapped.rooms)} rooms"


def picture_of(level: int) -> np.ndarray:
    """Returns an RGB array: `plr-server view --render examples.minigrid_demo:picture_of`."""
    env = _env_to_look_at()
    env.reset(seed=level)
    frame, rooms = env.unwrapped.get_frame(highlight=False, tile_size=8), env.unwrapped.rooms
    left, top = (8 * min(room.top[axis] for room in rooms) for axis in (0, 1))
    right, bottom = (8 * max(room.top[axis] + room.size[axis] for room in rooms) for axis in (0, 1))
    return frame[top:bottom, left:right]


class Agent:
    """PPO with two tanh layers, four action logits and a value; gradients by hand, Adam."""

    def __init__(self, rng: np.random.Generator, hidden: int = 64) -> None:
        self.rng, self.updates = rng, 0
        layers = ((490, hidden, 0.2), (hidden, hidden, 0.18), (hidden, len(ACTIONS) + 1, 0.01))
        self.params = [np.float32(p) for m, n, std in layers for p in (rng.normal(0, std, (m, n)), np.zeros(n))]
        self.means, self.squares = ([np.zeros_like(p) for p in self.params] for _ in range(2))  # Adam's moments

    def forward(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Takes views (B, 7, 7, 3) through x, one-hot cells, and two layers to log-probs (B, 4) and values (B,)."""
        cells = images[..., 0] + 5 * (images[..., 2] == 1)  # the type of object; a closed door, 4, becomes 9
        x = np.eye(10, dtype=np.float32)[cells].reshape(len(cells), -1)
        w1, b1, w2, b2, w3, b3 = self.params
        h1 = np.tanh(x @ w1 + b1)
        h2 = np.tanh(h1 @ w2 + b2)
        out = h2 @ w3 + b3
        logits = out[:, :-1] - out[:, :-1].max(1, keepdims=True)
        return x, h1, h2, logits - np.log(np.exp(logits).sum(1, keepdims=True)), out[:, -1]

    def act(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        *_, log_probs, values = self.forward(images)
        actions = (log_probs + self.rng.gumbel(size=log_probs.shape)).argmax(1)
        return actions, log_probs[np.arange(len(actions)), actions], values

    def learn(self, batch: list[np.ndarray], remaining: float) -> None:
        """Makes 4 passes over (B, ...) steps; step size and entropy bonus fade as the remaining share goes 1 to 0."""
        images, actions, old_log_probs, advantages, targets = batch
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for rows in (rows for _ in range(4) for rows in np.array_split(self.rng.permutation(len(actions)), 4)):
            x, h1, h2, log_probs, values = self.forward(images[rows])
            chosen, advantage, probs = (np.arange(len(rows)), actions[rows]), advantages[rows], np.exp(log_probs)
            ratio = np.exp(log_probs[chosen] - old_log_probs[rows])
            pull = np.where((ratio - 1) * np.sign(advantage) > CLIP, 0, ratio * advantage)
            d_entropy = probs * ((probs * log_probs).sum(1, keepdims=True) - log_probs)
            d_logits = probs * pull[:, None] - 0.02 * remaining * d_entropy
            d_logits[chosen] -= pull
            d_out = (np.column_stack([d_logits, values - targets[rows]]) / len(rows)).astype(np.float32)
            d_h2 = d_out @ self.params[4].T * (1 - h2**2)
            d_h1 = d_h2 @ self.params[2].T * (1 - h1**2)
            grads = [x.T @ d_h1, d_h1.sum(0), h1.T @ d_h2, d_h2.sum(0), h2.T @ d_out, d_out.sum(0)]
            shrink = min(1.0, 0.5 / np.sqrt(sum((g**2).sum() for g in grads)))
            self.updates += 1
            step_size = 2e-3 * remaining * np.sqrt(1 - 0.999**self.updates) / (1 - 0.9**self.updates)
            for p, g, mean, square in zip(self.params, grads, self.means, self.squares, strict=True):
                mean[:] = 0.9 * mean + 0.1 * shrink * g
                square[:] = 0.999 * square + 0.001 * (shrink * g) ** 2
                p[:] = p - step_size * mean / (np.sqrt(square) + 1e-6)


def advantages_of(values, next_values, rewards, terminated, dones) -> np.ndarray:  # noqa: ANN001
    """GAE over (T, N). The observation after a time limit is the terminal one here, so its value is the bootstrap."""
    advantages = rewards + GAMMA * np.vstack([values[1:], next_values]) * ~terminated - values
    for t in reversed(range(len(values) - 1)):
        advantages[t] += GAMMA * GAE_LAMBDA * ~dones[t] * advantages[t + 1]
    return advantages


def success_rate(agent: Agent, envs: gym.vector.VectorEnv) -> float:
    images, _ = envs.reset(seed=list(HELD_OUT))
    playing, solved = np.ones(len(HELD_OUT), bool), np.zeros(len(HELD_OUT), bool)
    while playing.any():
        images, rewards, terminated, truncated, _ = envs.step(ACTIONS[agent.act(images)[0]])
        solved |= playing & (rewards > 0)
        playing &= ~(terminated | truncated)
    return float(solved.mean())


@contextlib.contextmanager
def live_page(address: str, kept: Path) -> Iterator[str]:
    """Yields where a page shows what a server does; keeps it as a file when the context ends."""
    command = [sys.executable, "-m", "plr_server", "view", address, "--port", "0"]  # a free one
    for option, name in (("--group", "rooms_of"), ("--render", "picture_of")):
        command += [option, f"examples.minigrid_demo:{name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as viewer:  # noqa: S603  our own command
        try:
            url = viewer.stdout.readline().split()[-1]  # plr-server view at URL
            yield url
            with urllib.request.urlopen(f"{url}save") as page:  # noqa: S310  our own page
                kept.write_bytes(page.read())
        finally:
            viewer.terminate()


def train(seconds: float, seed: int, page: Path) -> tuple[list, list, dict]:
    """Returns (seconds, mass, scores, return) of every rollout, (seconds, success rate) of every exam, and stats."""
    config = Config(levels=LEVELS, temperature=1.0, staleness_coef=0.3, gamma=GAMMA, gae_lambda=GAE_LAMBDA, seed=seed)
    with (
        launch(config) as server,  # PLR: the curriculum, a process of its own
        Trainer(server.address) as trainer,  # PLR
        live_page(server.address, page) as url,
    ):
        print(f"live page         {url} for the next {seconds:.0f} seconds", flush=True)
        envs = gym.vector.AsyncVectorEnv([lambda: LevelReplay(make_env(), server.address)] * NUM_ENVS)  # PLR
        envs = LevelReplayVector(envs, server.address)  # PLR: knows the level of every step, and records the rollout
        exam_envs = gym.vector.SyncVectorEnv([make_env] * len(HELD_OUT))
        agent = Agent(np.random.default_rng(seed))
        history, returns, exams = [], [], [(0.0, success_rate(agent, exam_envs))]
        images, _ = envs.reset(seed=seed)
        steps, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            rows = []
            for _ in range(NUM_STEPS):
                actions, log_probs, values = agent.act(images)
                seen, (images, rewards, terminated, truncated, _) = images, envs.step(ACTIONS[actions])
                dones = terminated | truncated
                rows.append((seen, actions, log_probs, values, rewards, terminated, dones, envs.valid))
                returns += rewards[dones].tolist()  # MiniGrid rewards only the step that reaches the goal
            seen, actions, log_probs, values, rewards, terminated, dones, valid = map(np.stack, zip(*rows, strict=True))
            next_values = agent.forward(images)[-1]
            envs.push(values, next_values)  # PLR: what was played is scored, and so decides what is played next
            advantages = advantages_of(values, next_values, rewards, terminated, dones)
            batch = seen, actions, log_probs, advantages, advantages + values
            agent.learn([array[valid] for array in batch], remaining=1 - elapsed / seconds)
            steps += int(valid.sum())
            _, scores, _, is_seen = trainer.scores()
            recent = float(np.mean(returns[-100:])) if returns else 0.0
            history.append((elapsed, trainer.weights(), np.where(is_seen, scores, np.nan), recent))
            if is_exam := steps >= 30_000 * len(exams):
                exams.append((elapsed, success_rate(agent, exam_envs)))
            rate = steps / (time.monotonic() - start)
            note = f"{steps:,} steps, {rate:,.0f}/s  return {recent:.2f}  held-out {exams[-1][1]:.0%}"
            show_progress(elapsed / seconds, f"{seconds - elapsed:3.0f} s left  {note}", in_a_log=is_exam)
        exams.append((seconds, success_rate(agent, exam_envs)))
        envs.close()
        return history, exams, trainer.stats()


def show_progress(share: float, note: str, *, in_a_log: bool) -> None:
    live = sys.stderr.isatty()
    if live or in_a_log:
        print(f"[{'#' * round(30 * share):.<30}] {note}", end="\x1b[K\r" if live else "\n", file=sys.stderr, flush=True)


def draw(history: list, exams: list, path: Path) -> None:
    env = make_env()
    rooms = np.array([(env.reset(seed=level), len(env.unwrapped.rooms))[1] for level in LEVELS])
    times, mass, scores, returns = map(np.array, zip(*history, strict=True))
    cuts = np.linspace(0, len(times), min(len(times), 60) + 1).astype(int)
    edges = np.append(times, exams[-1][0])[cuts]
    mass = np.add.reduceat(mass, cuts[:-1]).T / np.diff(cuts)  # (levels, intervals), each the mean of its interval
    order = np.lexsort((-mass.mean(1), rooms))  # by difficulty, then by how much the curriculum cared
    figure = Figure(figsize=(13, 9), layout="constrained")
    (mass_axis, score_axis), (share_axis, return_axis) = figure.subplots(2, 2, sharex=True, height_ratios=(3, 2))
    ends, names = np.cumsum([(rooms == k).sum() for k in ROOMS]), [f"{k} rooms" for k in ROOMS]
    for axis, table, title, norm in (
        (mass_axis, mass * len(rooms), "Sampling mass of each level (1 = uniform, grey = not seen)", LogNorm(0.1, 100)),
        (score_axis, scores[cuts[1:] - 1].T, "Score of each level (mean |advantage|)", Normalize(0, 0.3)),
    ):
        image = axis.pcolormesh(edges, np.arange(len(rooms) + 1), table[order], norm=norm, cmap="inferno")
        figure.colorbar(image, ax=axis, extend="max", pad=0.01, aspect=40)
        axis.hlines(ends[:-1], 0, edges[-1], color="white", linewidth=1)
        axis.set(title=title, facecolor="lightgrey", yticks=ends - np.diff(ends, prepend=0) / 2, yticklabels=names)
    shares, colors = [mass[rooms == k].sum(0) for k in ROOMS], image.cmap(np.linspace(0.2, 0.9, len(ROOMS)))
    share_axis.stackplot((edges[1:] + edges[:-1]) / 2, shares, colors=colors, labels=names)
    share_axis.set(title="Sampling mass by difficulty", xlabel="seconds of training", xlim=(0, edges[-1]), ylim=(0, 1))
    share_axis.legend(loc="lower right", reverse=True, framealpha=0.9)
    return_axis.plot(times, returns, label="return, mean of the last 100 training episodes")
    return_axis.plot(*zip(*exams, strict=True), "o-", label=f"success rate on {len(HELD_OUT)} held-out levels")
    return_axis.set(title="What the agent learns", xlabel="seconds of training", ylim=(0, 1.25))
    return_axis.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90, help="how long to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("plr-demo.png"), help="where the picture goes")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = args.out.with_suffix(".html")
    history, exams, stats = train(args.seconds, args.seed, page)
    draw(history, exams, args.out)
    print(f"\nlevels seen       {stats['levels_seen']} of {stats['levels']}")
    print(f"replay share      {stats['replay_share']:.0%} of {stats['draws']:,} episodes replayed a level")
    print(f"effective levels  {stats['effective_levels']:.1f} (as spread out as this many equally likely ones)")
    print(f"mean score        {stats['mean_score']:.3f}")
    print(f"held-out success  {exams[0][1]:.0%} before training, {exams[-1][1]:.0%} after, on levels never trained on")
    print(f"picture           {args.out}")
    print(f"live page, kept   {page}")


if __name__ == "__main__":
    main()
