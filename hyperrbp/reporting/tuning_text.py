"""What the records of a tuning run say, as lines of text: headline, gradient, remarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from hyperrbp.config.recipe import Recipe, describe_tuner
from hyperrbp.config.recipe_keys import ADAM
from hyperrbp.experiments.results.examination import ExaminationReport
from hyperrbp.experiments.results.records import GradientRecord, StepRecord
from hyperrbp.optimizers.successive_halving import screening_steps
from hyperrbp.reporting.formatting import duration, number

if TYPE_CHECKING:
    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.runtime.callbacks import Progress


def headline(experiment: Experiment) -> str:
    """Say what is tuned, how, and on what."""
    recipe, problem = experiment.recipe, experiment.problem()
    gradient = recipe.gradient
    how = describe_tuner(recipe.meta.optimizer, gradient.method, gradient.trunc)
    threads = f"{recipe.threads} thread{'' if recipe.threads == 1 else 's'}"
    return (
        f"{recipe.name}: {problem.weights:,} weights, {len(experiment.theta)} hyperparameters;"
        f" {how} on {recipe.device}, {threads}\n"
        f"{recipe.meta.steps} meta steps of {recipe.inner.steps} training steps{_screening(recipe)}"
    )


def _screening(recipe: Recipe) -> str:
    """Say how long the screening takes that comes before the first meta step."""
    screened = recipe.meta.screened
    if recipe.meta.optimizer == ADAM or screened == 1:
        return ""
    runs = round(screening_steps(recipe.inner.steps, screened) / recipe.inner.steps)
    return f"; before them, {screened} points are screened, for as long as about {runs} take"


def gradient_line(record: GradientRecord) -> Text:
    """Say in one line what the gradient of a meta step is worth, coloured by its verdict."""
    verdict, known = record.verdict, record.diagnostics
    colour = "green" if verdict.trusted else "yellow" if verdict.usable else "red"
    line = Text(str(verdict), style=colour)
    parts = [
        "" if str(record.status) == str(verdict) else str(record.status),
        f"norm {number(record.gradient_norm)}",
        f"‖h−F(h)‖/‖h‖ {number(record.steady_state_residual)}",
        "" if known.growth_rate is None else f"terms ×{known.growth_rate:.3f}",
        "" if known.above_noise is None else f"{known.above_noise:.0%} above noise",
    ]
    line.append(f" ({', '.join(part for part in parts if part)})", style="default")
    return line


def remarks(record: StepRecord) -> Iterator[Text]:
    """Yield what is said once: a choice, the outcome of a full examination, a warning."""
    at = f"meta step {record.meta_step}: "
    if record.choice is not None:
        choice = record.choice
        yield Text(f"{at}auto takes {choice.label}; {choice.why}", style="cyan")
    if not isinstance(record, GradientRecord):
        return
    if record.check is not None:
        colour = "green" if record.check.trusted else "red"
        yield Text(f"{at}check: {_checked(record.check)}", style=colour)
    if record.warning is not None:
        yield Text(f"warning: {record.warning}", style="bold yellow")


def _checked(found: ExaminationReport) -> str:
    agreement, spectrum = found.agreement, found.spectrum
    parts = [str(found.verdict)]
    if agreement is not None:
        parts.append(
            f"; cosine {number(agreement.cosine)} with the exact gradient,"
            f" {number(agreement.descent)} of the steepest decrease kept"
        )
    if spectrum is not None:
        parts.append(f", spectral radius {number(spectrum.radius)}, ‖J‖ {number(spectrum.norm)}")
    return "".join(parts)


def progress_line(progress: Progress, seconds: float) -> str:
    """Say how far something between two meta steps has come, after so many seconds."""
    done, total = progress.done, progress.total
    line = f"{progress.task}: {done:,.0f} of {total:,.0f} {progress.unit}"
    return line + (f" | ETA {duration(seconds * (total - done) / done)}" if done else "")
