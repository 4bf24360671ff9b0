"""Update rules: one file and one registry line each."""

from __future__ import annotations

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.update_rules.adam import Adam
from hyperrbp.problems.training.update_rules.adamw import AdamW
from hyperrbp.problems.training.update_rules.base import Rates, TorchForm, UpdateRule
from hyperrbp.problems.training.update_rules.lion import Lion
from hyperrbp.problems.training.update_rules.maclaurin import Maclaurin
from hyperrbp.problems.training.update_rules.rmsprop import RMSprop
from hyperrbp.problems.training.update_rules.sgd import SGD
from hyperrbp.runtime.suggestions import did_you_mean

UPDATE_RULES: dict[str, type[UpdateRule]] = {
    "maclaurin": Maclaurin,
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "lion": Lion,
}
"""The update rules by the name that a recipe gives them."""


def update_rule(rule: str | UpdateRule) -> UpdateRule:
    """Return the rule of a name, with its default options, or the rule that is given.

    Raises:
        UsageError: for an unknown name.
    """
    if isinstance(rule, UpdateRule):
        return rule
    if rule not in UPDATE_RULES:
        hint = did_you_mean(rule, UPDATE_RULES)
        raise UsageError(f"unknown optimizer '{rule}'; there are {', '.join(UPDATE_RULES)}{hint}")
    return UPDATE_RULES[rule]()


__all__ = ["UPDATE_RULES", "Rates", "TorchForm", "UpdateRule", "update_rule"]
