"""The report of ``hyperrbp check``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.results.document import Document, Environment, Part, Values
from hyperrbp.experiments.results.examination import (
    AgreementReport,
    ExaminationReport,
    VerdictOf,
)
from hyperrbp.experiments.results.records import AveragingRecord


class SettingsReport(Part):
    """How a gradient was taken, as the section ``gradient`` of a recipe has it."""

    label: str
    """The settings in a few words."""
    method: str
    trunc: int
    averaging: AveragingRecord
    options: dict[str, JsonValue]


class CandidateReport(SettingsReport, AgreementReport):
    """See ``hyperrbp.hypergradients.method_selection.Candidate``."""

    verdict: VerdictOf
    trusted: bool
    work: int
    """Of a meta step, in gradients of a minibatch."""
    seconds: float
    """Of a meta step, as measured."""


class Recommendation(Part):
    """The method to use; without the exact gradient to compare with, only some advice."""

    label: str | None
    """None if no method was tried."""
    why: str
    method: str | None = None
    trunc: int | None = None
    averaging: AveragingRecord | None = None
    options: dict[str, JsonValue] | None = None
    keep: bool | None = None
    """Whether it is the method that was asked about."""


class CheckReport(ExaminationReport, Document):
    """``check.json``: the examination of a gradient, other methods, and which one to use."""

    kind: Literal["check"] = "check"
    recipe: Recipe
    weights: int
    """Of the network."""
    hyperparameters: dict[str, Values]
    """At which the gradient was taken, by kind, in natural units."""
    gradient: Mapping[str, Values]
    """By kind, with respect to the unconstrained θ."""
    asked: SettingsReport
    """How the gradient in question is taken."""
    candidates: list[CandidateReport]
    """Other methods and the exact one, last; empty without the exact gradient."""
    recommendation: Recommendation
    environment: Environment
    seconds: float
