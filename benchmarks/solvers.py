"""How small a residual each solver of (I − Jᵀ) z = g reaches, and for how many Jacobian products.

    python benchmarks/solvers.py [--products 20000] [--out benchmarks]

On ill-conditioned systems, in single and in double precision; the residuals are the true ones, in
double precision whatever the solver had. Writes results/solvers.md and figures/solvers.png; takes
a minute or two on one core.
"""

from __future__ import annotations

import argparse
import math
import platform
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from torch import Tensor

from hyperrbp.hypergradients.anderson import Anderson
from hyperrbp.hypergradients.cg import ConjugateGradient
from hyperrbp.hypergradients.gmres import Gmres
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.lsqr import Lsqr
from hyperrbp.hypergradients.neumann import Neumann
from hyperrbp.hypergradients.rbp import Rbp
from hyperrbp.paper.drawing import COLOURS
from hyperrbp.reporting.figures import save
from hyperrbp.runtime.files import write_atomically

N = 120
CASES = [(condition, dtype) for condition in (1e4, 1e6) for dtype in (torch.float32, torch.float64)]
# Restarted after twenty products, gmres has the memory of anderson with its window of ten.
SOLVERS: dict[str, tuple[ImplicitMethod, str]] = {
    "neumann": (Neumann(), COLOURS["neumann"]),
    "rbp (z0 = zero)": (Rbp(z0="zero"), COLOURS["rbp"]),
    "anderson (memory = 10)": (Anderson(), "C5"),
    "gmres (restart = 20)": (Gmres(restart=20), "C9"),
    "gmres": (Gmres(), "C0"),
    "cg": (ConjugateGradient(), COLOURS["cg"]),
    "lsqr": (Lsqr(), "C1"),
}


class Point(NamedTuple):
    """A solve of some truncation."""

    products: int
    residual: float


class Dense:
    """A Jacobian as a matrix."""

    def __init__(self, J: Tensor) -> None:
        self._J = J

    def transposed(self, u: Tensor) -> Tensor:
        return self._J.T @ u

    def forward(self, v: Tensor) -> Tensor:
        return self._J @ v


def system(condition: float) -> tuple[Tensor, Tensor]:
    """J, not normal, with the given condition number of I − J, and g.

    I − Jᵀ = P W with P symmetric, its eigenvalues log-spaced up to one, and W a rotation by half
    a radian at most, so that the spectral radius of J is below one, by about 1 / condition.
    """
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    Q = torch.linalg.qr(normal(N, N))[0]
    skew = normal(N, N)
    skew = skew - skew.T
    rotation = torch.linalg.matrix_exp(0.5 * skew / torch.linalg.matrix_norm(skew, 2))
    A = Q * torch.logspace(-math.log10(condition), 0, N, dtype=torch.float64) @ Q.T @ rotation
    return torch.eye(N, dtype=torch.float64) - A.T, normal(N)


def residual(J: Tensor, g: Tensor, z: Tensor) -> float:
    """The true one, of what was given in some precision."""
    J, g, z = J.double(), g.double(), z.double()
    return float((z - J.T @ z - g).norm() / g.norm())


def curve(method: ImplicitMethod, J: Tensor, g: Tensor, most: int) -> list[Point]:
    """A solve for each of the log-spaced truncations, up to one that it ends before."""
    points: list[Point] = []
    each = 2 if method.name in ("cg", "lsqr") else 1
    for trunc in dict.fromkeys(round(10 ** (i / 4)) for i in range(1, 4 * 9)):
        if each * trunc > most:
            break
        solution = method.solve(Dense(J), g, trunc, torch.Generator())
        points.append(Point(solution.products, residual(J, g, solution.z)))
        if solution.products < each * trunc:
            break
    return points


class Case(NamedTuple):
    """A system in a precision, and how the solvers fared."""

    condition: float
    dtype: torch.dtype
    direct: float
    """The residual of a dense solve in that precision."""
    curves: dict[str, list[Point]]

    @property
    def title(self) -> str:
        return f"condition number 1e{math.log10(self.condition):.0f}, {self.dtype}".replace(
            "torch.", ""
        )


def measured(condition: float, dtype: torch.dtype, most: int) -> Case:
    J, g = (tensor.to(dtype) for tensor in system(condition))
    z = torch.linalg.solve(torch.eye(N, dtype=dtype) - J.T, g)
    curves = {name: curve(method, J, g, most) for name, (method, _) in SOLVERS.items()}
    return Case(condition, dtype, residual(J, g, z), curves)


def draw(cases: list[Case], file: Path) -> None:
    """A panel a case, with one legend."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        2, 2, figsize=(10, 8), layout="constrained", sharex=True, sharey="col"
    )
    for axis, case in zip(grid.flat, cases, strict=True):
        axis.axhline(case.direct, color="0.5", ls=":", label="a dense solve")
        for name, points in case.curves.items():
            style = "--" if name.startswith("rbp") else "-"  # upon that of neumann
            colour = SOLVERS[name][1]
            xs, ys = zip(*points, strict=True)
            axis.loglog(xs, ys, style, marker="o", ms=2.5, lw=1.3, color=colour, label=name)
        axis.set_title(case.title)
        axis.grid(alpha=0.3)
    for axis in grid[1]:
        axis.set_xlabel("Jacobian products")
    for axis in grid[:, 0]:
        axis.set_ylabel("true relative residual")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(figure, file)


def markdown(cases: list[Case], most: int) -> str:
    """The smallest residual of every solver, and the products that it took."""
    lines = [
        f"The smallest true residual ‖(I − Jᵀ) z − g‖ / ‖g‖ of up to {most:,} Jacobian products,"
        f" and the products that it took, of log-spaced truncations; n = {N}."
        f" torch {torch.__version__}, {platform.machine()}.",
        "",
        "| | " + " | ".join(case.title for case in cases) + " |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for name in SOLVERS:
        cells = []
        for case in cases:
            best = min(case.curves[name], key=lambda point: point.residual)
            cells.append(f"{best.residual:.1e} ({best.products:,})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| a dense solve | " + " | ".join(f"{c.direct:.1e}" for c in cases) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=20_000, help="the most of a solve")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [measured(*case, given.products) for case in CASES]
    text = markdown(cases, given.products)
    print(text)
    for folder in ("results", "figures"):
        (given.out / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / "results" / "solvers.md", text)
    draw(cases, given.out / "figures" / "solvers.png")


if __name__ == "__main__":
    main()
