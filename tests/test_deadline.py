import pytest

from imagen.deadline import Deadline
from imagen.errors import UserError


@pytest.mark.parametrize("limit", ["01:02:00:00", {"days": 1, "hours": 2}])
def test_a_limit_is_said_in_two_ways(limit):
    assert Deadline(limit).time_remaining() == 26 * 3600


@pytest.mark.parametrize("limit", ["1h", {"fortnights": 1}])
def test_what_is_no_length_of_time_is_refused(limit):
    with pytest.raises(UserError, match=r"trainer\.max_time=.* is no length of time: write DD:HH:MM:SS"):
        Deadline(limit)
