"""The examination of one gradient, as reports and records hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Strict

from hyperrbp.experiments.results.document import Number, Part, Values
from hyperrbp.hypergradients.diagnostics.linear_solve import Outcome
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.method import Status

# From their texts too.
StatusOf = Annotated[Status, Strict(False)]
VerdictOf = Annotated[Verdict, Strict(False)]
OutcomeOf = Annotated[Outcome, Strict(False)]


class AgreementReport(Part):
    """See ``hyperrbp.hypergradients.agreement.Agreement``."""

    cosine: Number
    sign_agreement: Number
    descent: Number
    norm_ratio: Number


class SteadyStateReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.steady_state.SteadyState``."""

    residual: Number
    minibatch_residual: Number
    norms: Values
    structurally_zero: dict[str, list[str]]
    meaning: dict[str, str]


class SeriesReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.series.Series``."""

    norms: list[Number]
    gradients: list[list[Number]] | None = None
    """After each term, shape (K + 1, p); absent from the records of a tuning run."""
    growth_rate: Number
    last_share: Number
    smallest_term: int


class SolveReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.linear_solve.LinearSolve``."""

    residual: Number
    objective_residual: Number
    outcome: OutcomeOf
    sentence: str


class SpectrumReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.spectrum.Spectrum``."""

    radius: Number
    eigenvalues: list[list[Number]]
    """(real, imaginary) of each."""
    ritz_values: list[list[Number]]
    """(real, imaginary) of each."""
    norm: Number
    largest_singular_value: Number
    krylov_smallest: Number
    krylov_condition: Number
    krylov_dimension: int
    cg_condition: Number
    singular: bool
    bound: Number
    products: int


class NoiseReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.noise.Noise``."""

    standard_error: Mapping[str, Values]
    samples: int
    distinguishable: int
    """How many components are."""
    share: Number


class HorizonReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.short_horizon.Horizon``."""

    truncs: list[int]
    cosines: list[Number]
    flipped: list[list[str]]
    """The names of the components whose sign differs."""
    bias: Number
    settled: bool


class DifferencesReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.finite_differences.FiniteDifferences``."""

    dtype: str
    measured: list[Number]
    predicted: list[Number]
    error: Number


class SmoothnessReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.smoothness.Smoothness``."""

    fractions: list[Number]
    losses: list[Number]
    predicted: list[Number]
    start: Number
    falls: bool
    ratio: Number


class ExaminationReport(Part):
    """See ``hyperrbp.hypergradients.diagnostics.examination.Examination``.

    None where a question was not asked, or makes no sense for the method.
    """

    loss: Number
    verdict: VerdictOf
    trusted: bool
    why: str
    findings: list[str]
    gradient: Mapping[str, Values] | None = None
    """Absent from the records of a tuning run, which have it beside."""
    status: StatusOf
    products: int
    steady_state: SteadyStateReport
    series: SeriesReport
    solve: SolveReport | None
    spectrum: SpectrumReport | None
    noise: NoiseReport | None
    horizon: HorizonReport | None
    exact: Mapping[str, Values] | None
    agreement: AgreementReport | None
    precision: AgreementReport | None
    differences: list[DifferencesReport]
    smoothness: SmoothnessReport | None
