"""What the terminal and the page say of a study's numbers."""

import pytest

from universal_neurons.report.facts import Counts, _heldout_line
from universal_neurons.report.summary import basis_test


@pytest.mark.parametrize(
    ("q_value", "draws", "text"),
    [
        (0.0, 20, "≤ 0.05"),
        (0.049, 20, "≤ 0.05"),
        (0.05, 20, "0.05"),
        (0.0, 2, "≤ 0.50"),
        (0.31, 20, "0.31"),
        (1.0, 20, "1.00"),
    ],
)
def test_no_q_is_said_to_be_smaller_than_the_draws_can_tell(q_value, draws, text):
    assert basis_test(q_value, draws) == text


def test_little_text_is_counted_among_universal_neurons_only_where_there_are_some():
    assert _heldout_line(Counts(3, 2, 1, 4, 1, 1), "0.5").endswith("; 2 of the 3 rest on little text")
    assert "little text" not in _heldout_line(Counts(0, 0, 0, 2, 0, 0), "0.5")
