"""Facts of how much is computed at once after memory ran out."""

from model.batch_limit import MAX_PATIENCE, PATIENCE, BatchLimit


def calls_until_growth(limit: BatchLimit) -> int:
    """Return after how many calls without a failure more is tried."""
    before, calls = limit.count, 0
    while limit.count == before:
        limit.grow()
        calls += 1
    return calls


def test_what_was_too_much_is_halved() -> None:
    """Of what was tried, which may be less than what was allowed; never to nothing."""
    limit = BatchLimit(9)
    limit.halve(9)
    assert 5 == limit.count
    limit.halve(3)
    assert 2 == limit.count
    for _ in range(3):
        limit.halve(limit.count)
    assert 1 == limit.count


def test_it_grows_back_after_a_while() -> None:
    """Twofold each time, up to what there was and no further."""
    limit = BatchLimit(5)
    limit.halve(5)
    limit.halve(3)
    assert [PATIENCE] * 2 == [calls_until_growth(limit) for _ in range(2)]
    assert 5 == limit.count
    for _ in range(2 * PATIENCE):
        limit.grow()
    assert 5 == limit.count


def test_a_failure_begins_the_wait_anew() -> None:
    """Only calls in a row count."""
    limit = BatchLimit(8)
    limit.halve(8)
    for _ in range(PATIENCE - 1):
        limit.grow()
    limit.halve(4)
    limit.grow()
    assert 2 == limit.count


def test_growing_in_vain_is_tried_ever_more_rarely() -> None:
    """Each time that what had grown fails, the wait doubles, up to a bound."""
    limit, waits = BatchLimit(2), []
    for _ in range(9):
        limit.halve(2)
        waits.append(calls_until_growth(limit))
    assert [PATIENCE << n for n in range(7)] == waits[:7]
    assert MAX_PATIENCE == waits[7] == waits[8]


def test_what_grew_and_lasted_did_not_grow_in_vain() -> None:
    """Once it has lasted as long as the wait before it, the next shortage is a new one."""
    limit = BatchLimit(2)
    for _ in range(2):
        limit.halve(2)
        wait = calls_until_growth(limit)
    assert 2 * PATIENCE == wait
    for _ in range(wait):
        limit.grow()
    for expected in (PATIENCE, 2 * PATIENCE):
        limit.halve(2)
        assert expected == calls_until_growth(limit)
