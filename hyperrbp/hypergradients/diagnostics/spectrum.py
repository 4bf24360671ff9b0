"""The spectrum and norm of J = ∂F/∂h, and the conditioning of I − J, from products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs, eigsh
from torch import Tensor

from hyperrbp.problems.base import Jacobian
from hyperrbp.runtime.randomness import generator

Vector = NDArray[np.float64]

SINGULAR = 1e-6
"""|1 − λ| below which I − J counts as singular."""
_DENSE = 24
"""Up to this n, ARPACK has nothing to leave out."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of J at the last state."""

    eigenvalues: list[complex]
    """The largest in modulus that were found, largest first; momentum makes complex pairs."""
    ritz_values: list[complex]
    """Of J on the Krylov space that ∂L/∂h generates with Jᵀ, where the series lives."""
    norm: float | None
    """‖J‖, its largest singular value."""
    largest_singular_value: float | None
    """Of I − J."""
    krylov_smallest: float
    """The smallest singular value of I − J on the space below."""
    krylov_condition: float
    """The condition number of I − Jᵀ on the Krylov space that (I − J) ∂L/∂h generates with
    (I − J)(I − Jᵀ), which is where CG and LSQR work; infinite if ∂L/∂h has no part there."""
    krylov_dimension: int
    trunc: int
    """K, of the bound."""
    products: int
    """Jacobian products spent."""

    @property
    def radius(self) -> float | None:
        """Return the spectral radius of J: the series converges for every g just if it is < 1."""
        return abs(self.eigenvalues[0]) if self.eigenvalues else None

    @property
    def singular(self) -> bool:
        """Return whether one of the eigenvalues that were found is 1; another may still be."""
        return any(abs(1 - value) <= SINGULAR for value in self.eigenvalues)

    @property
    def cg_condition(self) -> float:
        """Return the condition number of the normal equations: the square."""
        return self.krylov_condition**2

    @property
    def bound(self) -> float | None:
        """Return Proposition 2's bound on the error of K + 1 terms, with ‖(I − J)⁻¹‖ ≤ 1/(1 − ‖J‖).

        None where ‖J‖ ≥ 1 or I − J is singular: there the proposition says nothing, for good or
        ill.
        """
        if self.norm is None or self.norm >= 1 or self.singular:
            return None
        return float(self.norm ** (self.trunc + 1) / (1 - self.norm))


def spectrum(
    jacobian: Jacobian,
    g: Tensor,
    trunc: int,
    *,
    wanted: int = 6,
    krylov_dimension: int = 30,
    restarts: int = 10,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Spectrum:
    """Estimate the spectrum by ARPACK, and on Krylov spaces by bidiagonalization from g.

    Args:
        jacobian: products with J and Jᵀ.
        g: ∂L/∂h, shape (n,).
        trunc: K, for Proposition 2.
        wanted: how many eigenvalues.
        krylov_dimension: at most so many steps of the bidiagonalization.
        restarts: at most so many restarts of ARPACK; what has not converged is left out.
        tolerance: relative, of the eigenpairs.
        seed: of the start vectors.
    """
    count = [0]

    def counted(product: Callable[[Tensor], Tensor]) -> Callable[[Vector], Vector]:
        def apply(vector: Vector) -> Vector:
            count[0] += 1
            moved = product(torch.as_tensor(vector.reshape(-1)).to(g))
            return np.asarray(moved.to("cpu", torch.float64).numpy())

        return apply

    forward, transposed = counted(jacobian.forward), counted(jacobian.transposed)
    n = len(g)
    start = torch.randn(n, generator=generator(seed, "spectrum"), dtype=torch.float64).numpy()
    common = {"maxiter": restarts, "tol": tolerance, "v0": start, "return_eigenvectors": False}

    def largest_singular_value(there: Callable[[Vector], Vector]) -> float | None:
        """Return the root of the largest eigenvalue of the symmetric operator ``there``."""
        if n <= _DENSE:
            dense = _dense(there, n)
            values = np.linalg.eigvalsh(dense) if np.isfinite(dense).all() else [np.nan]
        else:
            try:
                values = eigsh(_operator(there, n), k=1, which="LA", **common)
            except ArpackError:  # no convergence, or products that are not finite
                return None
        largest = float(np.sqrt(max(max(values), 0.0)))  # a NaN stays one
        return largest if np.isfinite(largest) else None

    def gram(u: Vector) -> Vector:
        return forward(transposed(u))

    def shifted_gram(u: Vector) -> Vector:
        moved = u - transposed(u)
        return moved - forward(moved)

    found = np.zeros(0, dtype=complex)
    if n <= _DENSE:
        dense = _dense(transposed, n)
        if np.isfinite(dense).all():
            found = np.linalg.eigvals(dense)
    else:
        # Many eigenvalues may lie close together; one alone, less precisely, is easier.
        for k, slack in ((wanted, 1), (1, 10)):
            if len(found):
                break
            try:
                found = eigs(_operator(transposed, n), k=k, **common | {"tol": slack * tolerance})
            except ArpackError as error:
                found = getattr(error, "eigenvalues", found)
    values = sorted((complex(value) for value in found), key=abs, reverse=True)
    norm, largest = largest_singular_value(gram), largest_singular_value(shifted_gram)
    steps = min(krylov_dimension, n)
    ritz = _ritz_values(transposed, g, steps)
    smallest, condition, dimension = _on_krylov_space(
        lambda u: u - transposed(u), lambda v: v - forward(v), g, steps
    )
    return Spectrum(
        eigenvalues=values,
        ritz_values=ritz,
        norm=norm,
        largest_singular_value=largest,
        krylov_smallest=smallest,
        krylov_condition=condition,
        krylov_dimension=dimension,
        trunc=trunc,
        products=count[0],
    )


def _operator(apply: Callable[[Vector], Vector], n: int) -> LinearOperator:
    return LinearOperator((n, n), matvec=apply, dtype=np.float64)


def _dense(apply: Callable[[Vector], Vector], n: int) -> Vector:
    return np.stack([apply(column) for column in np.eye(n)], axis=1)


def _ritz_values(apply: Callable[[Vector], Vector], g: Tensor, steps: int) -> list[complex]:
    """Return the eigenvalues of the Hessenberg matrix of so many Arnoldi steps from g."""
    start = g.to("cpu", torch.float64).numpy()
    length = float(np.linalg.norm(start))
    if not 0 < length < np.inf:
        return []
    floor = 64 * float(torch.finfo(g.dtype).eps)
    basis, hessenberg = [start / length], np.zeros((steps + 1, steps))
    for k in range(steps):
        w = apply(basis[-1])
        hessenberg[: k + 1, k] = [other @ w for other in basis]
        below, w = _orthonormal(w, basis)
        hessenberg[k + 1, k] = below
        if not floor * np.abs(hessenberg).max() < below < np.inf:
            break
        basis.append(w)
    size = min(len(basis), steps)
    block = hessenberg[:size, :size]
    return [complex(v) for v in np.linalg.eigvals(block)] if np.isfinite(block).all() else []


def _on_krylov_space(
    apply: Callable[[Vector], Vector],
    adjoint: Callable[[Vector], Vector],
    g: Tensor,
    steps: int,
) -> tuple[float, float, int]:
    """Return (σ_min, σ_max / σ_min, dimension) of A = I − Jᵀ (Golub and Kahan 1965).

    With full reorthogonalization, since what is wanted is the small end.
    """
    start = g.to("cpu", torch.float64).numpy()
    length = float(np.linalg.norm(start))
    if not 0 < length < np.inf:
        return 0.0, float("nan"), 0
    left, right = [start / length], list[Vector]()
    bidiagonal = np.zeros((steps + 1, steps))
    floor = 64 * float(torch.finfo(g.dtype).eps)
    dimension = 0
    for k in range(steps):
        v = adjoint(left[-1])
        if right:
            v = v - bidiagonal[k, k - 1] * right[-1]
        alpha, v = _orthonormal(v, right)
        if not floor * np.abs(bidiagonal).max(initial=1.0) < alpha < np.inf:
            break
        right.append(v)
        bidiagonal[k, k] = alpha
        dimension = k + 1
        beta, u = _orthonormal(apply(v) - alpha * left[-1], left)
        if not floor * np.abs(bidiagonal).max() < beta < np.inf:
            break
        left.append(u)
        bidiagonal[k + 1, k] = beta
    if dimension == 0:
        return 0.0, float("inf"), 0
    values = np.linalg.svd(bidiagonal[: dimension + 1, :dimension], compute_uv=False)
    smallest = float(values[-1])
    return smallest, float(values[0]) / smallest if smallest > 0 else float("inf"), dimension


def _orthonormal(vector: Vector, basis: list[Vector]) -> tuple[float, Vector]:
    """Return the norm of what the basis leaves of a vector, and that at length one."""
    for _ in range(2):
        for other in basis:
            vector = vector - (other @ vector) * other
    length = float(np.linalg.norm(vector))
    return length, vector / length if length > 0 else vector
