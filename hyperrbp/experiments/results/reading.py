"""Reads results by their kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from hyperrbp.experiments.results.train import EquilibriumResult, InnerRunResult
from hyperrbp.experiments.results.tune import TuneResult

AnyResult = TuneResult | EquilibriumResult | InnerRunResult
RESULTS: TypeAdapter[AnyResult] = TypeAdapter(Annotated[AnyResult, Field(discriminator="kind")])
"""Reads a ``result.json`` by its ``kind``."""
