"""Brute-force models of the equations, written from the paper with plain loops, to hold the real thing against."""

from __future__ import annotations

import math

import numpy as np


def episodes(dones, levels, valid):
    """[(level, column, [rows], finished)] in column-major time order."""
    found = []
    for n in range(len(dones[0])):
        rows = []
        for t in range(len(dones)):
            if not valid[t][n]:
                continue
            rows.append(t)
            if dones[t][n]:
                found.append((levels[t][n], n, rows, True))
                rows = []
        if rows:
            found.append((levels[rows[-1]][n], n, rows, False))
    return found


def advantages(rows, column, finished, block, gamma, gae_lambda):
    """A and delta of one episode's rows, backwards from its last one."""
    gae, deltas, carried = [], [], 0.0
    for i in reversed(range(len(rows))):
        t = rows[i]
        if i + 1 < len(rows):
            following = block["values"][rows[i + 1]][column]
        elif not finished:
            following = block["next_values"][column]
        elif block["truncated"][t][column]:
            following = block["final_values"][t][column]
        else:
            following = 0.0
        delta = block["rewards"][t][column] + gamma * following - block["values"][t][column]
        carried = delta + gamma * gae_lambda * carried
        gae.append(carried)
        deltas.append(delta)
    return gae[::-1], deltas[::-1]


def step_scores(strategy, rows, column, finished, block, gamma, gae_lambda):
    gae, deltas = advantages(rows, column, finished, block, gamma, gae_lambda)
    if strategy == "value_l1":
        return [abs(a) for a in gae]
    if strategy in {"gae", "signed_value_loss"}:
        return gae
    if strategy == "positive_value_loss":
        return [max(a, 0.0) for a in gae]
    if strategy == "one_step_td_error":
        return [abs(d) for d in deltas]
    scores = []
    for t in rows:
        logits = [float(x) for x in block["logits"][t][column]]
        exps = [math.exp(x - max(logits)) for x in logits]
        p = sorted((e / sum(exps) for e in exps), reverse=True)
        scores.append(
            {
                "policy_entropy": -sum(q * math.log(q) for q in p if q > 0) / math.log(len(p)),
                "least_confidence": 1 - p[0],
                "min_margin": 1 - (p[0] - p[1]),
            }[strategy]
        )
    return scores


def weights(scores, staleness, seen, *, transform, temperature, staleness_coef, staleness_temperature=1.0, eps=0.05):
    """P_replay over all levels, for moderate scores."""
    ids = [i for i in range(len(scores)) if seen[i]]
    if not ids:
        return np.zeros(len(scores))
    best_first = sorted(ids, key=lambda i: (-scores[i], i))
    rank = {i: r + 1 for r, i in enumerate(best_first)}
    match_first = sorted(ids, key=lambda i: (-(1 - scores[i]) * scores[i], i))
    match_rank = {i: r + 1 for r, i in enumerate(match_first)}
    top = max(scores[i] for i in ids)
    raw = {
        "rank": lambda i: rank[i] ** (-1 / temperature),
        "power": lambda i: max(scores[i], 0.0) ** (1 / temperature),
        "softmax": lambda i: math.exp((scores[i] - top) / temperature),
        "constant": lambda _: 1.0,
        "max": lambda i: float(rank[i] == 1),
        "eps_greedy": lambda i: (1 - eps) * (rank[i] == 1) + eps / len(ids),
        "match": lambda i: max((1 - scores[i]) * scores[i], 0.0) ** (1 / temperature),
        "match_rank": lambda i: match_rank[i] ** (-1 / temperature),
    }[transform]
    by_score = _normalised({i: raw(i) for i in ids})
    by_age = _normalised({i: staleness[i] ** (1 / staleness_temperature) for i in ids})
    found = np.zeros(len(scores))
    for i in ids:
        found[i] = (1 - staleness_coef) * by_score[i] + staleness_coef * by_age[i]
    return found


def _normalised(raw):
    total = sum(raw.values())
    return {i: w / total if total > 0 else 1 / len(raw) for i, w in raw.items()}


def chi_square_p_value(counts, probabilities):
    """Upper tail of the chi-square statistic by Wilson and Hilferty's cube root; cells expecting under 5 are pooled."""
    counts, expected = np.asarray(counts, float), np.asarray(probabilities) * np.sum(counts)
    assert counts[expected == 0].sum() == 0, "drawn where the probability is zero"
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    statistic = ((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    freedom = keep.sum() - 1
    if freedom == 0:
        return 1.0
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


class Ledger:
    """The strategies that look back, and `alt_advantage_abs`, by plain loops. Fed with blocks, it keeps the scores."""

    def __init__(self, strategy, *, partial="commit", alpha=1.0, max_score_coef=0.0, gamma=0.999, window=10):
        self.strategy, self.partial, self.gamma, self.window = strategy, partial, gamma, window
        self.alpha, self.max_score_coef = alpha, max_score_coef
        self.scores, self.best, self.past = {}, {}, {}
        self.open = {}  # (source, column) -> (level, its rows so far)

    def push(self, block, source="", columns=None):
        """Returns how many episodes or parts were scored."""
        found = []
        num_steps, num_columns = np.shape(block["levels"])
        for n in range(num_columns):
            key = (source, n if columns is None else columns[n])
            level, rows, scored = None, [], 0
            for t in range(num_steps):
                if not block["valid"][t][n]:
                    continue
                if not rows:
                    level, scored = block["levels"][t][n], 0
                    before = self.open.pop(key, None)
                    if before is not None and before[0] == level:
                        rows = list(before[1])
                        scored = len(rows) if self.partial == "commit" else 0
                rows.append((block["rewards"][t][n], block["values"][t][n]))
                last = t
                if block["dones"][t][n]:
                    after = block["final_values"][t][n] if block["truncated"][t][n] else 0.0
                    flag = block["successes"][t][n] if "successes" in block else None
                    found.append((t, n, level, rows, scored, True, after, flag))
                    rows = []
            if rows:
                found.append((last, n, level, rows, scored, False, block["next_values"][n], None))
                self.open[key] = (level, rows)
        count = 0
        for _, _, level, rows, scored, finished, after, flag in sorted(found, key=lambda e: (e[0], columns[e[1]])):
            count += self._episode(level, rows, scored, finished, after, flag)
        return count

    def _episode(self, level, rows, scored, finished, after, flag):
        by_window = self.strategy in {"learnability", "tscl"}
        if not finished and (by_window or self.partial == "stitch"):
            return 0
        earned = sum(reward for reward, _ in rows)
        if finished:
            self.best[level] = max(earned, self.best.get(level, earned))
        if by_window:
            succeeded = earned > 0 if flag is None else bool(flag)
            past = self.past.setdefault(level, [])
            past.append(float(succeeded) if self.strategy == "learnability" else earned)
            del past[: -self.window]
            self.scores[level] = p_times_not_p(past) if self.strategy == "learnability" else slope(past)
            return 1
        steps = rows[scored:]
        if self.strategy == "alt_advantage_abs":
            per_step = []
            for t in range(len(steps)):
                total = sum(self.gamma**k * reward for k, (reward, _) in enumerate(steps[t:]))
                per_step.append(abs(total + self.gamma ** (len(steps) - t) * after - steps[t][1]))
        else:
            per_step = [self.best.get(level, earned) - value for _, value in steps]
            if self.strategy == "grounded_positive_value_loss":
                per_step = [max(gap, 0.0) for gap in per_step]
        new = (1 - self.max_score_coef) * sum(per_step) / len(per_step) + self.max_score_coef * max(per_step)
        old = self.scores.get(level, new)
        self.scores[level] = (1 - self.alpha) * old + self.alpha * new
        return 1


def p_times_not_p(successes):
    p = sum(successes) / len(successes)
    return p * (1 - p)


def slope(ys):
    """Of the least-squares line through (0, y0), (1, y1), ..."""
    if len(ys) < 2:
        return 0.0
    mean_x, mean_y = (len(ys) - 1) / 2, sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(ys))
    return abs(covariance / sum((x - mean_x) ** 2 for x in range(len(ys))))


def stream(rng, *, num_blocks, num_columns, num_levels, done=0.2, valid=0.9, abandoned=0.1):
    """Blocks that follow each other, T from 1 to 8, episodes going on from one to the next unless abandoned.

    Numbers are multiples of 1/8, so that sums are exact in any order.
    """
    current = [None] * num_columns
    for _ in range(num_blocks):
        shape = (int(rng.integers(1, 9)), num_columns)
        dones = rng.random(shape) < done
        is_valid = rng.random(shape) < valid
        levels = rng.integers(0, num_levels, size=shape)
        for n in range(num_columns):
            if rng.random() < abandoned:
                current[n] = None
            for t in range(shape[0]):
                if is_valid[t, n]:
                    current[n] = levels[t, n] if current[n] is None else current[n]
                    levels[t, n] = current[n]
                    current[n] = None if dones[t, n] else current[n]
        yield {
            "values": rng.integers(-16, 17, size=shape) / 8,
            "rewards": rng.integers(-8, 9, size=shape) / 8,
            "dones": dones,
            "levels": levels,
            "next_values": rng.integers(-16, 17, size=num_columns) / 8,
            "truncated": dones & (rng.random(shape) < 0.5),
            "final_values": rng.integers(-16, 17, size=shape) / 8,
            "valid": is_valid,
        }
