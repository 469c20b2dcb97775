import pytest

from imagen.errors import GoneError, UserError, first_line


def test_a_users_error_can_be_caught_as_a_value_error():
    with pytest.raises(ValueError, match="batch_size=0"):
        raise UserError("batch_size=0 must be at least 1")


def test_another_process_that_is_gone_is_told_to_the_user():
    assert issubclass(GoneError, UserError)


def test_of_what_an_error_says_the_first_line_is_taken():
    assert first_line(RuntimeError("size mismatch\n\tfor a")) == "size mismatch"
    assert first_line(EOFError()) == "EOFError"
