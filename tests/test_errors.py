import pytest

from imagen.errors import GoneError, UserError


def test_a_users_error_can_be_caught_as_a_value_error():
    with pytest.raises(ValueError, match="batch_size=0"):
        raise UserError("batch_size=0 must be at least 1")


def test_another_process_that_is_gone_is_told_to_the_user():
    assert issubclass(GoneError, UserError)
