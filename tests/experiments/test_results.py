"""Typed records and results: what they read, what they refuse, and how they are written."""

from __future__ import annotations

import json
import math
import struct

import pytest
from factories import tuning_text
from hypothesis import given
from hypothesis import strategies as st
from runs import as_json

from hyperrbp.config.loading import parse
from hyperrbp.exceptions import CheckpointError
from hyperrbp.experiments.results.document import Measured, to_json
from hyperrbp.experiments.results.reading import read_record, read_result
from hyperrbp.experiments.results.records import (
    EpochRecord,
    EvaluationRecord,
    Record,
    StepRecord,
    TrainRecord,
)
from hyperrbp.experiments.results.run import RunResult
from hyperrbp.experiments.results.train import TrainResult
from hyperrbp.experiments.results.tune import TuneResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.tune import tune_recipe

MEASURED = Measured(
    seconds={"inner run": 0.5, "check": 0.25},
    peak_bytes={"inner run": {"process": 7, "allocator": 3}, "check": {"process": 5}},
    time="2026-01-01T00:00:00.000+00:00",
)


def evaluation(loss: float = 0.5, **values: float) -> EvaluationRecord:
    return EvaluationRecord(
        meta_step=3, meta_loss=loss, hyperparameters={"momentum": values}, measured=MEASURED
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    tune_recipe(parse(tuning_text(meta__steps=1)), folder)
    return RunFolder(folder)


# --- written and read again ----------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_to_the_bit(value):
    record = evaluation(value, a=value)
    again = read_record(to_json(record), EvaluationRecord, "here")
    assert struct.pack("<d", again.meta_loss) == struct.pack("<d", value)
    assert struct.pack("<d", again.hyperparameters["momentum"]["a"]) == struct.pack("<d", value)


def test_what_is_not_finite_is_null():
    record = evaluation(a=math.nan, b=math.inf, c=-math.inf)
    assert as_json(record)["hyperparameters"]["momentum"] == {"a": None, "b": None, "c": None}


def test_what_was_not_given_is_absent():
    document = as_json(evaluation())
    assert list(document)[:2] == ["kind", "schema_version"]
    assert set(document) == {
        "kind", "schema_version", "measured", "meta_step", "meta_loss", "hyperparameters",
    }  # fmt: skip


def test_a_run_reads_back_as_it_was_written(tuned):
    records, result = tuned.records(StepRecord), tuned.result(TuneResult)
    lines = tuned.records_file.read_text().splitlines()
    assert [to_json(record) for record in records] == lines
    assert as_json(result) == json.loads(tuned.result_file.read_text())
    assert [record.number for record in records] == [0, 1]
    assert result.meta_loss == [record.meta_loss for record in records]
    assert result.finished


def test_records_and_results_are_read_by_their_kind(tuned):
    assert tuned.records(Record) == tuned.records(StepRecord)
    assert tuned.result(RunResult) == tuned.result(TuneResult)


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"kind": "walk"}, "kind"),
        ({"meta_loss": "0.5"}, "meta_loss"),
        ({"meta_loss": None}, "meta_loss"),
        ({"meta_step": 0.5}, "meta_step"),
        ({"more": 1}, "more"),
        ({"measured": {"seconds": {}}}, "measured.peak_bytes"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_line_and_key(tmp_path, change, place):
    file = tmp_path / "records.jsonl"
    good = as_json(evaluation())
    lines = [good, good | change, good]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckpointError) as raised:
        RunFolder(tmp_path).records(StepRecord)
    message = str(raised.value)
    assert message.startswith(f"{file}:2: not a record of this version (")
    assert place in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["kind", "schema_version", "meta_loss", "measured"])
def test_a_key_that_is_missing_is_refused(key):
    document = as_json(evaluation())
    del document[key]
    with pytest.raises(CheckpointError, match=f"^here: .*{key}"):
        read_record(json.dumps(document), StepRecord, "here")


def test_a_record_or_result_of_another_kind_is_refused(tuned):
    with pytest.raises(CheckpointError, match="of the kind gradient"):
        tuned.records(TrainRecord)
    with pytest.raises(CheckpointError, match="of the kind tune"):
        tuned.result(TrainResult)
    with pytest.raises(CheckpointError, match="not a result of this version"):
        read_result("[]", RunResult, "here")


# --- what a record says of itself ----------------------------------------------------------------


def test_costs_of_a_record():
    assert MEASURED.total_seconds == 0.75
    assert MEASURED.peak_by_phase == {"inner run": 3, "check": 5}
    assert MEASURED.largest_peak == 5


def test_a_loss_that_was_not_finite():
    epoch = EpochRecord(epoch=2, loss=math.nan, measured=MEASURED)
    assert epoch.loss is None
    assert math.isnan(epoch.any_loss)
    assert epoch.number == 2
