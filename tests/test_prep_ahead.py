"""A stage of a pipeline in a thread of its own."""

import itertools
import threading

import pytest

from imagen.prep.ahead import ahead


def test_items_come_in_order():
    assert list(ahead(range(100), 3)) == list(range(100))
    assert list(ahead([], 1)) == []


def test_it_works_ahead_but_not_far():
    made, enough = [], threading.Event()

    def source():
        for i in itertools.count():
            made.append(i)
            if i == 3:
                enough.set()
            yield i

    items = ahead(source(), 2)
    assert next(items) == 0
    assert enough.wait(10)  # 1 and 2 wait to be taken, 3 for room
    assert made == [0, 1, 2, 3]
    items.close()
    assert made == [0, 1, 2, 3]


def test_an_error_comes_where_its_item_would_have():
    def source():
        yield 1
        raise ValueError("no second item")

    items = ahead(ahead(source(), 1), 1)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(items)


def test_closing_ends_all_threads_and_closes_the_source():
    closed = []

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    before = threading.active_count()
    items = ahead(ahead(source(), 2), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]
    assert threading.active_count() == before
