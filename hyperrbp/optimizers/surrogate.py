"""A local model of the loss: a Gaussian process in a trust region around the best point.

After Eriksson et al. 2019 (TuRBO): a local model, a Thompson sample of it on candidates that move
few coordinates at a time, and a region that follows success. The process is scikit-learn's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CANDIDATES = 400
NEIGHBOURS = 150
"""Points nearest to the best that the process is fitted to."""
MOVED = 0.3
"""The share of coordinates that a candidate changes."""
CAP = 0.35
"""Losses above this quantile of the whole runs count as alike: only good ones are told apart."""
REFIT = 4
"""Scales are fitted anew at every so many proposals."""


class Surrogate:
    """A Gaussian process on the unit cube of p coordinates, a length scale for each."""

    def __init__(self, coordinates: int, logs: Sequence[float] = ()) -> None:
        self.logs = list(logs) or [0.0] * (coordinates + 1) + [math.log(0.01)]
        """Logarithms of the amplitude's square, the length scales, and the noise's variance."""

    def proposal(
        self,
        tried: Sequence[Sequence[float]],
        scores: Sequence[float],
        radius: float,
        turn: int,
        source: np.random.Generator,
    ) -> Array:
        """Return the candidate with the lowest value in one Thompson sample, shape (p,).

        Args:
            tried: m points of p coordinates.
            scores: their log losses, by ``log_loss``; infinite for what was given up.
            radius: half the side of the trust region.
            turn: how many proposals there were before.
            source: of the random numbers.
        """
        points, values = np.array(tried), np.array(scores)
        capped, cap = _capped(values)
        scales = np.exp(self.logs[1:-1])
        best = points[int(values.argmin())]
        near = np.linalg.norm((points - best) / scales, axis=1).argsort()[:NEIGHBOURS]
        process = self._fitted(points[near], capped[near], turn)
        # The centre is the best by the process: the lowest loss may have been luck.
        good = points[values <= cap]
        centre = good[int(process.predict(good).argmin())]
        sides = np.clip(scales / np.exp(np.log(scales).mean()), 0.3, 3)
        shape = CANDIDATES, len(centre)
        moved = source.random(shape) < max(MOVED, 1 / len(centre))
        moves = radius * sides * source.uniform(-1, 1, shape) * moved
        candidates = np.clip(centre + moves, 0, 1)
        mean, covariance = process.predict(candidates, return_cov=True)
        root = np.linalg.cholesky(covariance + 1e-4 * np.eye(CANDIDATES) * covariance.max())
        sample = mean + root @ source.standard_normal(CANDIDATES)
        return np.asarray(candidates[int(sample.argmin())])

    def _fitted(self, points: Array, values: Array, turn: int) -> Any:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        amplitude, *scales, noise = np.exp(self.logs)
        kernel = ConstantKernel(amplitude, (1e-2, 1e2)) * RBF(scales, [(0.05, 20.0)] * len(scales))
        process = GaussianProcessRegressor(
            kernel + WhiteKernel(noise, (1e-6, 1.0)),
            alpha=1e-6,
            normalize_y=True,
            optimizer=self._fit if turn % REFIT == 0 else None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scale at its bound, iterations cut short
            process.fit(points, values)
        self.logs = process.kernel_.theta.tolist()
        # What is predicted is the function, without the noise of another evaluation.
        process.kernel_ = process.kernel_.k1
        return process

    def _fit(self, negative_log_likelihood: Any, logs: Array, bounds: Array) -> tuple[Array, float]:
        """Take a few steps downhill from the present scales, towards a prior at their start."""
        from scipy.optimize import minimize

        origin = np.array([0.0] * (len(logs) - 1) + [math.log(0.01)])
        width = np.array([1.4] + [0.7] * (len(logs) - 2) + [2.0])

        def objective(at: Array) -> tuple[float, Array]:
            value, gradient = negative_log_likelihood(at)
            pull = (at - origin) / width
            return float(value + pull @ pull / 2), np.asarray(gradient + pull / width)

        found = minimize(
            objective, logs, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 8}
        )
        return found.x, found.fun


def _capped(scores: Array) -> tuple[Array, float]:
    """Return the scores with all bad ones alike, and the value from which on they are."""
    whole = np.sort(scores[np.isfinite(scores)])
    cap = whole[min(len(whole) - 1, max(12, int(CAP * len(whole))))]
    cap += 0.3 * (cap - whole[0])
    return np.minimum(scores, cap), float(cap)


WORST_SCORE = 30.0
"""The score of a loss that is not finite, and the highest there is."""


def log_loss(loss: float) -> float:
    """Return the logarithm of a loss to base ten; in order also where it is not above zero."""
    if not math.isfinite(loss):
        return WORST_SCORE
    return min(WORST_SCORE, math.log10(loss) if loss > 1e-30 else loss - 30.0)
