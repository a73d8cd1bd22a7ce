"""The one agent of the study: PPO on a small network over the 7x7 view, compiled, on one core.

Its settings are the PLR paper's for MiniGrid (arXiv 2010.03934, appendix); the network is a smaller one: 49 cells, one
input each that is 1, then two layers of ReLUs, then action logits and a value. It knows nothing of curricula or levels.
"""

from __future__ import annotations

import dataclasses

import numba as nb
import numpy as np

GAMMA, GAE_LAMBDA = 0.999, 0.95
NUM_ENVS, NUM_STEPS = 64, 256  # of a rollout


@dataclasses.dataclass(frozen=True)
class Settings:
    """PPO's: what level-replay's MiniGrid command uses."""

    learning_rate: float = 7e-4
    adam_eps: float = 1e-5
    clip: float = 0.2
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    epochs: int = 4
    minibatches: int = 8
    hidden: tuple[int, int] = (128, 64)


@nb.njit(cache=True, fastmath=True)
def embed(inputs, weights, bias, hidden):
    """Fills `hidden` (B, H) with ReLU of the sum of the rows of `weights` that `inputs` (B, 49) name."""
    num_hidden = weights.shape[1]
    for i in range(len(inputs)):
        for h in range(num_hidden):
            hidden[i, h] = bias[h]
        for row in inputs[i]:
            if row >= 0:
                for h in range(num_hidden):
                    hidden[i, h] += weights[row, h]
        for h in range(num_hidden):
            hidden[i, h] = max(hidden[i, h], np.float32(0))


@nb.njit(cache=True, fastmath=True)
def embed_backward(inputs, d_hidden, d_weights):
    for i in range(len(inputs)):
        for row in inputs[i]:
            if row >= 0:
                for h in range(d_weights.shape[1]):
                    d_weights[row, h] += d_hidden[i, h]


@nb.njit(cache=True, fastmath=True)
def choose(outputs, uniforms, actions, log_probs, values):
    """Draws actions from the logits; the last output is the value."""
    num_actions = outputs.shape[1] - 1
    for i in range(len(outputs)):
        top = outputs[i, 0]
        for a in range(1, num_actions):
            top = max(top, outputs[i, a])
        total = 0.0
        for a in range(num_actions):
            total += np.exp(outputs[i, a] - top)
        below, picked = 0.0, num_actions - 1
        for a in range(num_actions):
            below += np.exp(outputs[i, a] - top)
            if below >= uniforms[i] * total:
                picked = a
                break
        actions[i] = picked
        log_probs[i] = outputs[i, picked] - top - np.log(total)
        values[i] = outputs[i, num_actions]


@nb.njit(cache=True, fastmath=True)
def loss_backward(
    outputs, actions, old_log_probs, advantages, targets, old_values, clip, entropy_coef, value_coef, d_outputs
):
    """Fills `d_outputs` with the gradient of PPO's clipped loss, averaged over the batch; returns the mean entropy."""
    size, num_actions = outputs.shape[0], outputs.shape[1] - 1
    probs, entropy_sum = np.empty(num_actions), 0.0
    for i in range(size):
        top = outputs[i, 0]
        for a in range(1, num_actions):
            top = max(top, outputs[i, a])
        total = 0.0
        for a in range(num_actions):
            probs[a] = np.exp(outputs[i, a] - top)
            total += probs[a]
        log_total, entropy = np.log(total), 0.0
        for a in range(num_actions):
            probs[a] /= total
            entropy -= probs[a] * (outputs[i, a] - top - log_total)
        entropy_sum += entropy
        ratio = np.exp(outputs[i, actions[i]] - top - log_total - old_log_probs[i])
        is_clipped = (advantages[i] > 0 and ratio > 1 + clip) or (advantages[i] < 0 and ratio < 1 - clip)
        pull = 0.0 if is_clipped else ratio * advantages[i]
        for a in range(num_actions):
            d_logit = pull * probs[a]
            if a == actions[i]:
                d_logit -= pull
            d_logit += entropy_coef * probs[a] * (outputs[i, a] - top - log_total + entropy)
            d_outputs[i, a] = d_logit / size
        moved = outputs[i, num_actions] - old_values[i]
        error = outputs[i, num_actions] - targets[i]
        clipped_error = old_values[i] + min(max(moved, -clip), clip) - targets[i]
        d_value = error
        if error * error < clipped_error * clipped_error:
            d_value = clipped_error if abs(moved) < clip else 0.0
        d_outputs[i, num_actions] = value_coef * d_value / size
    return entropy_sum / size


@nb.njit(cache=True, fastmath=True)
def adam(params, grads, means, squares, step_size, max_norm, eps, mean_scale, square_scale):
    norm = 0.0
    for i in range(grads.size):
        norm += grads[i] * grads[i]
    scale = np.float32(min(1.0, max_norm / (np.sqrt(norm) + 1e-6)))
    for i in range(grads.size):
        grad = grads[i] * scale
        means[i] = np.float32(0.9) * means[i] + np.float32(0.1) * grad
        squares[i] = np.float32(0.999) * squares[i] + np.float32(0.001) * grad * grad
        change = means[i] * np.float32(mean_scale) / (np.sqrt(squares[i] * np.float32(square_scale)) + np.float32(eps))
        params[i] -= np.float32(step_size) * change


@nb.njit(cache=True)
def advantages_of(rewards, values, dones, next_values):
    """Returns GAE (T, N). A time limit counts as an end, as it does for the curriculum's scores here."""
    num_steps, num_envs = rewards.shape
    advantages = np.empty((num_steps, num_envs))
    for n in range(num_envs):
        carried, following = 0.0, next_values[n]
        for t in range(num_steps - 1, -1, -1):
            goes_on = 0.0 if dones[t, n] else 1.0
            delta = rewards[t, n] + GAMMA * following * goes_on - values[t, n]
            carried = delta + GAMMA * GAE_LAMBDA * goes_on * carried
            advantages[t, n] = carried
            following = values[t, n]
    return advantages


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is learnt from: B transitions.

    Attributes:
        inputs: (B, 49) int16 observations. actions: (B,) int64.
        log_probs, values: (B,) float32, of the policy that played. advantages: (B,) float64.
    """

    inputs: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    advantages: np.ndarray


class Agent:
    """The network and its optimiser.

    Args:
        num_inputs: of the one-hot code, over all cells. num_cells: of the view.
        num_actions: A.
        seed: of the weights, the actions and the minibatches.
    """

    def __init__(self, num_inputs: int, num_cells: int, num_actions: int, seed: int) -> None:
        self.settings = Settings()
        self._rng = np.random.default_rng(seed)
        first, second = self.settings.hidden
        outputs = num_actions + 1
        shapes = ((num_inputs, first), (first,), (first, second), (second,), (second, outputs), (outputs,))
        size = sum(int(np.prod(shape)) for shape in shapes)
        self._params, self._grads, self._means, self._squares = np.zeros((4, size), np.float32)
        self._w1, self._b1, self._w2, self._b2, self._w3, self._b3 = _views(self._params, shapes)
        self._gradients = _views(self._grads, shapes)
        # As if half of the cells were seen; the other layers orthogonal, with PPO's usual gains.
        self._w1[:] = self._rng.normal(0, np.sqrt(2 / (num_cells / 2)), self._w1.shape)
        self._w2[:] = np.sqrt(2) * np.linalg.qr(self._rng.normal(size=self._w2.shape))[0]
        self._w3[:] = 0.01 * np.linalg.qr(self._rng.normal(size=self._w3.shape))[0]
        self._w3[:, -1] *= 100
        self._updates = 0

    def act(self, inputs: np.ndarray, rng: np.random.Generator | None = None) -> tuple[np.ndarray, ...]:
        """Returns actions (B,), their log-probabilities (B,) and values (B,), drawn from `rng` or the agent's own."""
        size = len(inputs)
        uniforms = (self._rng if rng is None else rng).random(size)
        actions, log_probs, values = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.float32)
        choose(self._forward(inputs)[2], uniforms, actions, log_probs, values)
        return actions, log_probs, values

    def values(self, inputs: np.ndarray) -> np.ndarray:
        """Returns (B,) float32."""
        return self._forward(inputs)[2][:, -1].copy()

    def params(self) -> np.ndarray:
        """Returns a copy of all weights, flat."""
        return self._params.copy()

    def learn(self, batch: Batch) -> float:
        """Makes one PPO update, 4 epochs of 8 minibatches; returns the mean entropy of the policy, in nats."""
        settings, entropies = self.settings, []
        targets = (batch.advantages + batch.values).astype(np.float32)
        advantages = ((batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)).astype(np.float32)
        for _ in range(settings.epochs):
            for rows in np.array_split(self._rng.permutation(len(targets)), settings.minibatches):
                inputs = batch.inputs[rows]
                hidden1, hidden2, outputs = self._forward(inputs)
                d_outputs = np.empty_like(outputs)
                entropies.append(
                    loss_backward(
                        *(outputs, batch.actions[rows], batch.log_probs[rows], advantages[rows], targets[rows]),
                        *(batch.values[rows], settings.clip, settings.entropy_coef, settings.value_coef, d_outputs),
                    )
                )
                self._backward(inputs, hidden1, hidden2, d_outputs)
                self._updates += 1
                adam(
                    *(self._params, self._grads, self._means, self._squares, settings.learning_rate),
                    *(settings.max_grad_norm, settings.adam_eps),
                    *(1 / (1 - 0.9**self._updates), 1 / (1 - 0.999**self._updates)),
                )
        return float(np.mean(entropies))

    def _forward(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hidden1 = np.empty((len(inputs), len(self._b1)), np.float32)
        embed(inputs, self._w1, self._b1, hidden1)
        hidden2 = np.maximum(hidden1 @ self._w2 + self._b2, 0)
        return hidden1, hidden2, hidden2 @ self._w3 + self._b3

    def _backward(self, inputs: np.ndarray, hidden1: np.ndarray, hidden2: np.ndarray, d_outputs: np.ndarray) -> None:
        d_w1, d_b1, d_w2, d_b2, d_w3, d_b3 = self._gradients
        np.dot(hidden2.T, d_outputs, out=d_w3)
        d_outputs.sum(0, out=d_b3)
        d_hidden2 = (d_outputs @ self._w3.T) * (hidden2 > 0)
        np.dot(hidden1.T, d_hidden2, out=d_w2)
        d_hidden2.sum(0, out=d_b2)
        d_hidden1 = (d_hidden2 @ self._w2.T) * (hidden1 > 0)
        d_hidden1.sum(0, out=d_b1)
        d_w1[:] = 0
        embed_backward(inputs, d_hidden1, d_w1)


def _views(flat: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]
