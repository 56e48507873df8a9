"""Events are one line of real JSON each."""

import json
import math

from tunesmith import Event


def test_numbers_that_json_has_no_word_for_become_text():
    line = Event("step", 3, {"gradient_norm": math.inf, "of": [math.nan, 1.0], "inner": {"loss": -math.inf}}).line()
    assert "Infinity" not in line
    assert json.loads(line)["gradient_norm"] == "inf"
    assert json.loads(line)["of"] == ["nan", 1.0]


def test_data_cannot_pose_as_the_envelope():
    assert json.loads(Event("step", 3, {"step": 9, "event": "end"}).line())["step"] == 3
