"""Keeps in mind what the module of a run was examined as, and examines it again if it changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.examination import examine, signature
from hyperrbp.problems.training.inputs import RunInputs
from hyperrbp.problems.training.network_loss import NetworkLoss
from hyperrbp.problems.training.objective import Objective
from hyperrbp.runtime.process_state import ONE_THREAD

_INFERENCE = (
    "nothing has a derivative under torch.inference_mode; call a run outside of it: it keeps no"
    " graph that was not asked for"
)


class ExaminedModule:
    """The module of a run, which is examined once before its first step.

    Args:
        objective: the loss that is trained on.
        reported: the loss that is reported, of the same module.
        w: the initial weights, shape (N,).
        inputs: of the run.
    """

    def __init__(
        self, objective: Objective, reported: NetworkLoss, w: Tensor, inputs: RunInputs
    ) -> None:
        self._objective, self._reported, self._w, self._inputs = objective, reported, w, inputs
        self._examined = False
        self._examined_as: Any = None

    def of(
        self, objective: Objective, reported: NetworkLoss, w: Tensor, inputs: RunInputs
    ) -> ExaminedModule:
        """Return a copy of the module, examined as this one is."""
        other = ExaminedModule(objective, reported, w, inputs)
        other._examined = self._examined
        return other

    def check(self, like: ExaminedModule | None = None) -> None:
        """Examine the module, if that has not been done; see ``TrainingRun.examine``.

        Raises:
            UsageError: if it cannot be differentiated.
        """
        if self._examined:
            return
        with ONE_THREAD:
            if like is not None and like._examined:
                self._objective.draws = like._objective.draws
            else:
                examine(self._objective, self._w, self._inputs.batches(0), self._inputs.seed)
            self._reported.draws = self._objective.draws
            self._examined, self._examined_as = True, signature(self._objective)

    def check_again(self) -> None:
        """Examine the module if that has not been done, or if it has changed since.

        Raises:
            UsageError: if it cannot be differentiated, or not where it is called.
        """
        if torch.is_inference_mode_enabled():
            raise UsageError(_INFERENCE)
        if self._examined_as not in (None, signature(self._objective)):
            self._examined = False
        self.check()
