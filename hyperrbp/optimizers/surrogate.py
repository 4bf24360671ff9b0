"""Where to look next without a gradient: a Gaussian process in a trust region around the best.

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

    def __init__(self, coordinates: int) -> None:
        self.logs = [0.0] * (coordinates + 1) + [math.log(0.01)]
        """Of the amplitude's square, the length scales, and the noise's variance."""

    def proposal(
        self,
        tried: Sequence[Sequence[float]],
        losses: Sequence[float],
        radius: float,
        turn: int,
        draw: np.random.Generator,
    ) -> Array:
        """The lowest candidate of one sample of what the function may be, shape (p,).

        Args:
            tried: m points of p coordinates.
            losses: how they did, by :func:`height`, lower being better; inf for what was given up.
            radius: half the side of the trust region.
            turn: how many proposals there were before.
            draw: what is drawn from.
        """
        points, heights = np.array(tried), np.array(losses)
        capped, cap = _capped(heights)
        scales = np.exp(self.logs[1:-1])
        best = points[int(heights.argmin())]
        near = np.linalg.norm((points - best) / scales, axis=1).argsort()[:NEIGHBOURS]
        process = self._fitted(points[near], capped[near], turn)
        # The centre is the best by the process: the best that was seen may have been lucky.
        good = points[heights <= cap]
        centre = good[int(process.predict(good).argmin())]
        sides = np.clip(scales / np.exp(np.log(scales).mean()), 0.3, 3)
        shape = CANDIDATES, len(centre)
        moved = draw.random(shape) < max(MOVED, 1 / len(centre))
        moves = radius * sides * draw.uniform(-1, 1, shape) * moved
        candidates = np.clip(centre + moves, 0, 1)
        mean, covariance = process.predict(candidates, return_cov=True)
        root = np.linalg.cholesky(covariance + 1e-4 * np.eye(CANDIDATES) * covariance.max())
        sample = mean + root @ draw.standard_normal(CANDIDATES)
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
        # What is predicted is the function, not another noisy look at it.
        process.kernel_ = process.kernel_.k1
        return process

    def _fit(self, surprise: Any, logs: Array, bounds: Array) -> tuple[Array, float]:
        """A few steps downhill from where the scales stood, drawn to where they began."""
        from scipy.optimize import minimize

        origin = np.array([0.0] * (len(logs) - 1) + [math.log(0.01)])
        width = np.array([1.4] + [0.7] * (len(logs) - 2) + [2.0])

        def objective(at: Array) -> tuple[float, Array]:
            value, slope = surprise(at)
            pull = (at - origin) / width
            return float(value + pull @ pull / 2), np.asarray(slope + pull / width)

        found = minimize(
            objective, logs, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 8}
        )
        return found.x, found.fun


def _capped(heights: Array) -> tuple[Array, float]:
    """Heights with all bad ones alike, and from where on they are."""
    whole = np.sort(heights[np.isfinite(heights)])
    cap = whole[min(len(whole) - 1, max(12, int(CAP * len(whole))))]
    cap += 0.3 * (cap - whole[0])
    return np.minimum(heights, cap), float(cap)


WORST = 30.0
"""The height of a loss that is not finite."""


def height(loss: float) -> float:
    """The logarithm of a loss, to base ten; in order also where a loss is not above zero."""
    if not math.isfinite(loss):
        return WORST
    return min(WORST, math.log10(loss) if loss > 1e-30 else loss - 30.0)
