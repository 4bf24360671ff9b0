"""What the results of all runs say: how they ended, where they ran, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from hyperrbp.experiments.results.document import Document, Environment
from hyperrbp.experiments.results.records import Record
from hyperrbp.runtime.metering import process_peak_bytes

InexactResume = dict[str, list[str | int | None]]
"""What had changed: by key, the old and the new value."""
DONE = "done"


class RunResult(Document):
    """What every ``result.json`` of a run says."""

    status: str
    """``done``, or why the run ended early."""
    seed: int
    device: str
    seconds: float
    """Of all phases, also from before a resume."""
    peak_bytes: int
    """The largest peak of any phase."""
    wall_seconds: float
    """Since the run was begun or resumed."""
    run_folder: str
    inexact_resumes: list[InexactResume]
    environment: Environment
    population: str | None = None
    """Where a sample stands for all examples, in words; absent where all are taken."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == DONE


def spent(records: Sequence[Record]) -> tuple[float, int]:
    """Return the seconds and the largest peak in bytes of a whole run, by its records."""
    taken = [record.measured for record in records]
    peaks = [peak for m in taken for phase in m.peak_bytes.values() for peak in phase.values()]
    return (
        sum(m.total_seconds for m in taken),
        max(peaks) if peaks else process_peak_bytes(),
    )
