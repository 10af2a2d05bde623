import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.hooks import Control


def stopped_after(values, callback, key="eval/accuracy"):
    """How many measurements the run lasts; None: it is not stopped."""
    control = Control(Path("run"), {})
    for number, value in enumerate(values, start=1):
        callback.on_round_end({"round": number, **({} if value is None else {key: value})}, control)
        if control.stop_reason is not None:
            return number, control.stop_reason
    return None


def test_it_stops_after_so_many_measurements_without_an_improvement():
    callback = EarlyStopping(patience=2)
    number, reason = stopped_after([0.1, 0.3, 0.2, None, 0.3, 0.9], callback)
    assert number == 5  # 0.2 and the second 0.3; the round between was not measured
    assert reason == "eval/accuracy was not better than 0.3 in 2 measurements"


def test_small_improvements_do_not_count():
    assert stopped_after([0.5, 0.625, 0.75], EarlyStopping(patience=2, min_delta=0.25))[0] == 3
    assert stopped_after([0.5, 0.625, 0.875, 0.875], EarlyStopping(patience=2, min_delta=0.25)) is None
    assert stopped_after([3.0, 2.0, 1.5, 1.2], EarlyStopping(monitor="x", mode="min", patience=1), "x") is None
    assert stopped_after([3.0, 2.0, 2.5], EarlyStopping(monitor="x", mode="min", patience=1), "x")[0] == 3


def test_what_is_no_name_of_a_metric_is_refused():
    with pytest.raises(UserError, match="monitor is 5\nwhere: early_stopping\nmend: give the name of a metric"):
        EarlyStopping(monitor=5)


def test_a_metric_that_is_a_text_is_the_users_error():
    with pytest.raises(
        UserError, match=r"monitor is 'model/digest'\nwhere: early_stopping\nmend: give a metric that is"
    ):
        stopped_after(["a10b"], EarlyStopping(monitor="model/digest"), "model/digest")


def test_what_is_not_finite_is_no_improvement():
    number, reason = stopped_after([float("nan"), float("inf")], EarlyStopping(patience=2))
    assert (number, reason) == (2, "eval/accuracy was not finite in 2 measurements")
    assert EarlyStopping().best is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 12), st.integers(1, 3))
def test_going_on_from_its_state_stops_where_an_undisturbed_one_does(values, cut, patience):
    whole = stopped_after(values, EarlyStopping(patience=patience))
    first, second = EarlyStopping(patience=patience), EarlyStopping(patience=patience)
    before = stopped_after(values[:cut], first)
    second.restore(json.loads(json.dumps(first.state())))
    after = stopped_after(values[cut:], second)
    assert whole == (before or (after and (after[0] + len(values[:cut]), after[1])))


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"patience": 0}, "give a whole number, 1 or more"),
        ({"mode": "up"}, "give max or min"),
        ({"min_delta": -1.0}, "give 0 or more"),
        ({"min_delta": float("nan")}, "give 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, mend):
    with pytest.raises(UserError, match=f"{next(iter(options))} is ") as caught:
        EarlyStopping(**options)
    assert caught.value.mend == mend


def test_a_metric_that_is_not_measured_is_told_once(capsys):
    stopping = EarlyStopping(monitor="eval/acuracy")
    for number in (1, 2, 3):
        stopping.on_round_end(
            {"round": number, "train/loss": 1.0} | ({"eval/accuracy": 0.5} if number > 1 else {}), None
        )
    told = (
        "note: early_stopping looks at eval/acuracy, which has not been measured so far; did you mean eval/accuracy?\n"
    )
    assert capsys.readouterr().err == told
