"""Work spread over processes and machines."""

import os

import pytest

from imagen.errors import UserError
from imagen.prep.work import Workers


def double(number):
    return 2 * number, os.getpid()


def refuse(number):
    if number == 2:
        raise UserError("number=2 is refused")
    return number


def test_shares_are_disjoint_and_whole():
    shares = [Workers(0, index, 3).share(range(10)) for index in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


@pytest.mark.parametrize("processes", [0, 2])
def test_every_item_is_done_once(processes):
    results = list(Workers(processes, 0, 1).map(double, range(5), what="doubling"))
    assert sorted(value for value, _ in results) == [0, 2, 4, 6, 8]
    assert (os.getpid() in {process for _, process in results}) == (processes == 0)


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_reaches_the_caller(processes):
    with pytest.raises(UserError, match="number=2 is refused"):
        list(Workers(processes, 0, 1).map(refuse, range(5), what="refusing"))


@pytest.mark.parametrize("bad", [(-1, 0, 1), (0, 1, 1), (0, -1, 2), (0, 0, 0)])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(UserError, match=r"num_workers=|worker_index="):
        Workers(*bad)
