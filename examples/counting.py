"""Counts aloud, for the demonstration: one line each 0.1 s of the program's own time.

    counting.py [LINES]
"""

import hashlib
import sys
import time

LINES = int(sys.argv[1]) if len(sys.argv) > 1 else 60
hashes = {}
started = time.monotonic()
for line in range(1, LINES + 1):
    for _ in range(4_000):
        number = len(hashes)
        hashes[number] = hashlib.sha256(b"%d" % number).hexdigest()
    while time.monotonic() - started < line * 0.1:
        time.sleep(0.005)
    print(f"line {line:3}: {len(hashes):7,} hashes in a dict", flush=True)
digest = hashlib.sha256("".join(hashes[number] for number in range(len(hashes))).encode()).hexdigest()
print(f"digest of all: {digest}")
