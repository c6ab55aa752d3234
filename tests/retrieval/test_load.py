"""Two threads of mixed searches while segments are appended, deleted and merged: every answer is that of a snapshot."""

import threading
import time

import numpy as np
import pytest
from scipy import sparse

from ellzero.retrieval import ImpactIndex
from ellzero.rng import rng

TERMS, STEP, MOST = 60, 40, 4000


def documents(number):
    """The weights of forty documents, the same whenever they are asked for."""
    draw = rng(0, "load", str(number))
    return draw.integers(1, 200, (STEP, TERMS)) * (draw.random((STEP, TERMS)) < 0.15)


class Log:
    """What the index holds after each change, told before the change begins: how many steps, and which are deleted."""

    def __init__(self):
        self.states = [(0, frozenset())]
        self.rows = sparse.csr_array(documents(0))
        self.done, self.wrong, self.counts = threading.Event(), [], [0, 0, 0]


def brute_force(rows, steps, deleted, query, k, within):
    """Scores descending, ids ascending, none with score 0."""
    scores = rows[: (steps + 1) * STEP] @ query
    scores[sorted(deleted)] = 0
    if within is not None:
        allowed = np.zeros(len(scores), bool)
        allowed[within[within < len(scores)]] = True
        scores = np.where(allowed, scores, 0)
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    order = order[scores[order] > 0]
    return order, scores[order]


def change(index, log, seconds):
    """The one writer, whose end is the end; a slow disk gets the time for some changes."""
    draw, (steps, deleted), start = rng(0, "load", "writer"), log.states[0], time.monotonic()
    while (time.monotonic() - start < seconds or min(log.counts) < 5) and not log.wrong:
        what = draw.random()
        if what < 0.6 and (steps + 2) * STEP <= MOST:
            steps += 1
            log.rows = sparse.csr_array(sparse.vstack([log.rows, documents(steps)]))
            log.states.append((steps, deleted))
            index.append(documents(steps), range(steps * STEP, (steps + 1) * STEP))
        elif what < 0.8 and (steps + 1) * STEP - len(deleted) > STEP:
            gone = draw.choice(sorted(set(range((steps + 1) * STEP)) - deleted), 3, replace=False).tolist()
            deleted = deleted | frozenset(gone)
            log.states.append((steps, deleted))
            index.delete(gone)
        else:
            index.merge()
        log.counts[0] += 1
        time.sleep(0.02)  # in memory all documents would be there, and gone again, within a second


def search(index, log, seed):
    """One searcher, who compares with every state that the index went through meanwhile."""
    draw = rng(0, "load", f"searcher {seed}")
    while not log.done.is_set():
        query = draw.integers(0, 50, TERMS) * (draw.random(TERMS) < draw.choice([0.05, 0.3, 1.0]))
        k, algorithm = int(draw.choice([1, 10, 100, 1000])), str(draw.choice(["auto", "bmp", "exhaustive"]))
        within = draw.choice(MOST, 500, replace=False) if draw.random() < 0.3 else None
        first = len(log.states) - 1  # the last change may have begun and not ended
        found = index.search(sparse.csr_array(query[None]), k, algorithm=algorithm, n_threads=1,
                             within=None if within is None else within.tolist())  # fmt: skip
        rows, states = log.rows, log.states[max(first - 1, 0) : len(log.states)]
        answers = (brute_force(rows, *state, query, k, within) for state in states)
        right = [np.array_equal(found.ids[0], i) and np.array_equal(found.scores[0], s) for i, s in answers]
        assert any(right), f"an answer of no snapshot: k={k}, {algorithm}, states {states}"
        log.counts[seed] += 1


def guarded(log, work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        log.wrong.append(error)
    finally:
        if work is change or log.wrong:
            log.done.set()


@pytest.mark.parametrize(
    ("seconds", "stands"),
    [(1.0, False), (1.0, True), pytest.param(30.0, False, marks=pytest.mark.slow),
     pytest.param(30.0, True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_answer_is_that_of_a_snapshot(tmp_path, seconds, stands):
    index = ImpactIndex.build(documents(0), range(STEP), block_size=4, scale=1.0, path=tmp_path if stands else None)
    log = Log()
    works = [(change, index, log, seconds), (search, index, log, 1), (search, index, log, 2)]
    threads = [threading.Thread(target=guarded, args=(log, *work)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if log.wrong:
        raise log.wrong[0]
    changes, *searches = log.counts
    print(f"{changes} changes, {sum(searches)} searches in {seconds:.0f} s, {index.documents} documents left")
    assert min(log.counts) >= 5
    steps, deleted = log.states[-1]
    assert index.documents == (steps + 1) * STEP - len(deleted)
    if stands:
        assert ImpactIndex.load(tmp_path).documents == index.documents
