from __future__ import annotations

import json
import math

from hyperrbp.runtime.documents import finite_or_null


def test_what_json_cannot_say_is_null_at_any_depth():
    document = {
        "a": [1.5, math.nan, (math.inf, {"b": -math.inf})],
        "c": "nan",
        "d": None,
        "e": True,
    }
    found = finite_or_null(document)
    assert found == {"a": [1.5, None, [None, {"b": None}]], "c": "nan", "d": None, "e": True}
    json.dumps(found, allow_nan=False)
