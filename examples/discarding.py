"""Fills memory and discards every other page of it, over and over; what was discarded reads as zero, the rest is there.

    discarding.py [ROUNDS] [PAUSE]

In the pause after each round, in seconds, nothing is allocated: a failure then finds the discards just done.
"""

import mmap
import sys
import time

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
PAUSE = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
PAGE, PAGES = mmap.PAGESIZE, 512

memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
zero = bytes(PAGE)
contents = [bytes([value]) * PAGE for value in range(256)]
wrong = 0
for count in range(1, ROUNDS + 1):
    content = contents[count % 255 + 1]
    for page in range(PAGES):
        memory[page * PAGE : (page + 1) * PAGE] = content
    for page in range(count % 2, PAGES, 2):
        memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
    time.sleep(PAUSE)
    for page in range(PAGES):
        expected = content if page % 2 != count % 2 else zero
        wrong += memory[page * PAGE : (page + 1) * PAGE] != expected
    if count % 10 == 0:
        print(f"round {count}: {wrong} wrong pages", flush=True)
print(f"{ROUNDS} rounds, {wrong} wrong pages")
