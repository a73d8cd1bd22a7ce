"""A score function of your own: an AdA-style fitness for episodes that are made of several trials at one task.

    $ python examples/ada_fitness.py

An adaptive agent plays the same level for a few trials in a row and keeps its memory between them; what it learns in
the first trial should show in the last. The mean over all steps of such an episode says little about that. The fitness
here is the one-step TD error, a cheap estimate of regret, averaged within each trial first and then over the trials, so
that every trial counts the same; the maximum is the hardest trial. The server runs it in place of a built-in strategy,
in either way:

    Config(strategy="ada_fitness:fitness")              # the server imports it, from its folder or PYTHONPATH
    trainer.set_score_function(per_trial(TRIAL_STEPS))  # sent to a server that was started with --allow-pickle

Source: arXiv 2301.07608 (Human-Timescale Adaptation), which trains with Prioritized Level Replay and a fitness of its
own, normalised per trial. Where we differ: no statistics are kept from one episode to the next, because a score
function must depend on its segment alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plr_client import Segment, Trainer
from plr_server import Config, launch

TRIALS, TRIAL_STEPS = 3, 8
GAMMA = 0.95


def per_trial(trial_steps: int) -> Callable[[Segment], tuple[float, float]]:
    """Returns the fitness for episodes whose trials have `trial_steps` steps each."""

    def fitness(segment: Segment) -> tuple[float, float]:
        if segment.td_errors is None:
            raise ValueError("expected rewards, values and next_values in every push, got fewer")
        trial = (segment.steps_before + np.arange(segment.steps)) // trial_steps  # a part may begin in a later trial
        _, number = np.unique(trial, return_inverse=True)
        means = np.bincount(number, np.abs(segment.td_errors)) / np.bincount(number)
        return float(means.mean()), float(means.max())

    return fitness


fitness = per_trial(TRIAL_STEPS)


def play(level: int) -> dict[str, np.ndarray]:
    """One episode at a bandit with level + 1 arms, of which the last pays 1, by an agent that tries them one by one.

    It stays with the arm that paid, in later trials too. Of the rest of the episode it expects all there is to get once
    the arm is found, and before that one chance in the arms that are left. One arm has nothing to teach, and more arms
    than an episode has steps never pay.
    """
    arms, steps = level + 1, TRIALS * TRIAL_STEPS
    pulled = np.arange(steps + 1)  # before each step, and after the last
    found = pulled >= arms
    rest = (1.0 - GAMMA ** (steps - pulled)) / (1.0 - GAMMA)
    values = np.where(found, rest, rest / np.maximum(arms - pulled, 1))
    return {
        "rewards": found[1:].astype(float),
        "values": values[:-1],
        "dones": np.arange(steps) == steps - 1,
        "levels": np.full(steps, level),
    }


def main() -> None:
    levels = (0, 3, 7, 12, 20, 40)
    config = Config(levels=levels, gamma=GAMMA, partial="stitch")
    with launch(config, allow_pickle=True) as server, Trainer(server.address) as trainer:
        trainer.set_score_function(per_trial(TRIAL_STEPS))
        episodes = [play(level) for level in levels]
        block = {name: np.stack([episode[name] for episode in episodes], axis=1) for name in episodes[0]}
        trainer.push(**block, next_values=np.zeros(len(levels)))
        print(f"scored by {trainer.stats()['strategy']}")
        for level, score, weight in zip(levels, trainer.scores()[1], trainer.weights(), strict=True):
            print(f"{level + 1:3} arms  fitness {score:.3f}  P_replay {weight:.3f}")


if __name__ == "__main__":
    main()
