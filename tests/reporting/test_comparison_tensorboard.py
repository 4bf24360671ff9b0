"""A comparison in TensorBoard."""

from __future__ import annotations

from comparisons import ROWS, made, row

from hyperrbp.reporting.tensorboard import write_comparison

LINEAR = [
    row("tbptt", trunc, steps, seconds=trunc ** (2 if steps == 100 else 1), saved_bytes=trunc**2)
    for trunc in (10, 100)
    for steps in (100, 1000)
]
LEVEL = [row("bptt", None, steps, seconds=steps / 50, saved_bytes=steps) for steps in (100, 1000)]


def scalars_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_costs_against_k(tmp_path):
    write_comparison(made(ROWS), tmp_path)
    assert {run.name for run in tmp_path.iterdir()} == {"neumann_T_1000", "bptt_T_1000"}
    scalars = scalars_in(tmp_path / "neumann_T_1000")
    keys = {
        "seconds", "saved_bytes", "peak_bytes", "flops", "time_ratio", "memory_ratio", "cosine",
        "sign_agreement", "norm_ratio", "descent",
    }  # fmt: skip
    assert set(scalars) == {f"{key}/against_K" for key in keys}
    assert scalars["seconds/against_K"] == {10: 0.25, 50: 0.5}
    assert scalars["cosine/against_K"] == {10: 0.5}
    level = scalars_in(tmp_path / "bptt_T_1000")["time_ratio/against_K"]
    assert level == {10: 1, 50: 1}, "what has no use for K is a level line"


def test_tensorboard_has_costs_against_t_if_there_are_several(tmp_path):
    write_comparison(made(LEVEL + LINEAR), tmp_path)
    assert {run.name for run in tmp_path.iterdir()} == {
        "bptt", "bptt_T_100", "bptt_T_1000", "tbptt_T_100", "tbptt_T_1000", "tbptt_K_10",
        "tbptt_K_100",
    }  # fmt: skip
    assert scalars_in(tmp_path / "bptt")["seconds/against_T"] == {100: 2, 1000: 20}
    along_t = scalars_in(tmp_path / "tbptt_K_10")
    assert along_t["saved_bytes/against_T"] == {100: 100, 1000: 100}
    along_k = scalars_in(tmp_path / "tbptt_T_100")
    assert along_k["saved_bytes/against_K"] == {10: 100, 100: 10_000}
