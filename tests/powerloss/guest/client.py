"""The client of memcached inside the machine, and what checks it afterwards.

    client.py load SEED             sets keys one after the other; each STORED is written to the third serial port
    client.py verify SEED:DONE...   asks for all keys of these loads, of which DONE sets had been acknowledged

What a load sets follows from its seed. So the host needs to remember nothing but how many were acknowledged.
"""

import itertools
import os
import random
import socket
import sys

ADDRESS = ("127.0.0.1", 11211)
KEYS = 3000
BATCH = 50
# Lines that may be on their way in a serial port's buffers, and one set that is under way.
AHEAD = 2000


def sets(seed):
    """The endless sequence of keys and values."""
    source = random.Random(seed)
    while True:
        key = b"k%x-%d" % (seed, source.randrange(KEYS))
        yield key, source.randbytes(source.randrange(1, 400)).hex().encode()


def load(seed):
    """Sets until the connection ends, which no failure may do before the machine itself ends."""
    connection = socket.create_connection(ADDRESS, timeout=60)
    answers = connection.makefile("rb")
    port = os.open("/dev/ttyS2", os.O_WRONLY | os.O_NOCTTY)
    for key, value in sets(seed):
        connection.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        if answers.readline() != b"STORED\r\n":
            raise SystemExit("client: not stored")
        os.write(port, b"%x\n" % seed)


def values(answers):
    """The values of one answer to "get"."""
    found = {}
    while True:
        words = answers.readline().split()
        if words == [b"END"]:
            return found
        if len(words) != 4:
            raise SystemExit(f"client: memcached said {words}")
        found[words[1]] = answers.read(int(words[3]))
        answers.read(2)


def ask(connection, answers, names):
    """The values of keys, as far as they are there."""
    found = {}
    for start in range(0, len(names), BATCH):
        connection.sendall(b"get %s\r\n" % b" ".join(names[start : start + BATCH]))
        found.update(values(answers))
    return found


def verify(loads):
    """Compares everything. More may have been done than the host has heard of, but in the same order."""
    connection = socket.create_connection(ADDRESS, timeout=60)
    answers = connection.makefile("rb")
    keys = size = wrong = 0
    for seed, done in loads:
        sequence = list(itertools.islice(sets(seed), done + AHEAD))
        expected = dict(sequence[:done])
        found = ask(connection, answers, list(dict(sequence)))
        keys += len(expected)
        size += sum(len(found.get(key, b"")) for key in expected)
        differ = {key for key, _ in sequence if found.get(key) != expected.get(key)}
        first = sorted(differ & set(expected))
        for key, value in sequence[done:]:
            if not differ:
                break
            expected[key] = value
            (differ.discard if found.get(key) == value else differ.add)(key)
        if differ:
            wrong += len(first)
            for key in first[:10]:
                print("client: wrong:", key.decode(), "another value" if key in found else "missing")
            print(f"client: the keys of {seed:x} are not as after {done} sets or up to {AHEAD} more")
            wrong = max(wrong, 1)
    print(f"checked {keys} {size} {wrong}")


if sys.argv[1] == "load":
    load(int(sys.argv[2], 16))
else:
    verify([(int(seed, 16), int(done)) for seed, done in (pair.split(":") for pair in sys.argv[2:])])
