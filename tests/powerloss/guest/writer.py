"""A program that keeps its data in a mapped file without zhuque, for the controls.

    writer.py write FILE SEED [sync]   maps it (sync: MAP_SYNC), writes pages, says how many, and waits
    writer.py check FILE SEED          says how many of these pages are there
"""

import mmap
import os
import random
import sys
import time

SIZE = 32 << 20
PAGES = 500
PAGE = 4096
MAP_SHARED_VALIDATE, MAP_SYNC = 3, 0x80000


def content(seed):
    """Pages and what is in them."""
    source = random.Random(seed)
    return [(page, source.randbytes(PAGE)) for page in source.sample(range(SIZE // PAGE), PAGES)]


def write(path, seed, sync):
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(file, SIZE)
    # The file itself is there after the failure; what is asked is only whether stores to it are.
    os.fsync(file)
    flags = MAP_SHARED_VALIDATE | MAP_SYNC if sync else mmap.MAP_SHARED
    memory = mmap.mmap(file, SIZE, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    for page, expected in content(seed):
        memory[page * PAGE : (page + 1) * PAGE] = expected
    print(f"written {PAGES}", flush=True)
    time.sleep(600)


def check(path, seed):
    with open(path, "rb") as file:
        found = 0
        for page, expected in content(seed):
            file.seek(page * PAGE)
            found += file.read(PAGE) == expected
    print(f"found {found} {PAGES}")


if sys.argv[1] == "write":
    write(sys.argv[2], int(sys.argv[3], 16), sys.argv[4:] == ["sync"])
else:
    check(sys.argv[2], int(sys.argv[3], 16))
