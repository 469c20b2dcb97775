import pytest

from imagen.errors import UserError


def test_a_users_error_can_be_caught_as_a_value_error():
    with pytest.raises(ValueError, match="batch_size=0"):
        raise UserError("batch_size=0 must be at least 1")
