"""A binary heap over preallocated arrays, best score first, for the compiled tree builders."""

from numba import njit


@njit(cache=True)
def push(heap_score, heap_item, size, score, item):
    """Add an entry; returns the new size."""
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if heap_score[up] >= score:
            break
        heap_score[i] = heap_score[up]
        heap_item[i] = heap_item[up]
        i = up
    heap_score[i] = score
    heap_item[i] = item
    return size + 1


@njit(cache=True)
def pop(heap_score, heap_item, size):
    """Remove the best entry; returns its item and the new size."""
    best = heap_item[0]
    size -= 1
    score, item = heap_score[size], heap_item[size]
    i = 0
    while True:
        down = 2 * i + 1
        if down >= size:
            break
        if down + 1 < size and heap_score[down + 1] > heap_score[down]:
            down += 1
        if score >= heap_score[down]:
            break
        heap_score[i] = heap_score[down]
        heap_item[i] = heap_item[down]
        i = down
    heap_score[i] = score
    heap_item[i] = item
    return best, size
