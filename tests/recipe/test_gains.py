"""Transformers of texts and of pictures that memorised wrong labels gain from a correction."""

from __future__ import annotations

import pytest
from benchmarks.texts_and_vit import measure


@pytest.mark.slow
@pytest.mark.parametrize("name", ["texts", "pictures"])
def test_a_transformer_that_memorised_wrong_labels_gains(name, vision):
    found = measure(name, 0, ["verifix"])
    assert found["memorised"] > 75  # of labels of which 30% are wrong
    assert found["chosen"]["verifix"]["project"] is not None
    assert found["verifix"] > found["before"] + 2, found
