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
