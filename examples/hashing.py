"""Four threads hash into a dict, append to a log file, use sqlite3, and run programs in between.

    hashing.py [ENTRIES] [DIRECTORY]

A child that is lost in a power failure shows as ended by SIGPWR, and is run again. What is printed at the end covers
every piece of state and does not depend on how the threads took turns.
"""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading

ENTRIES = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
DIRECTORY = sys.argv[2] if len(sys.argv) > 2 else "."
THREADS = 4
BATCH = 5_000

table = {}
outputs = {}
progress = [0] * THREADS
log = os.open(os.path.join(DIRECTORY, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
database = os.path.join(DIRECTORY, "rows.db")
database_lock = threading.Lock()


def entry(number):
    return hashlib.sha256(b"%d" % number).hexdigest()


def run_again_if_lost(arguments):
    """subprocess.run for a program whose loss in a power failure is no error."""
    while True:
        result = subprocess.run(arguments, capture_output=True, text=True)
        if result.returncode == -signal.SIGPWR:
            continue
        if result.returncode != 0:
            raise SystemExit(f"{arguments} ended with {result.returncode}: {result.stderr}")
        return result.stdout


def store(connection, index, batch, digest):
    with database_lock, connection:
        connection.execute("insert into rows values (?, ?, ?)", (index, batch, digest))


def work(index):
    connection = sqlite3.connect(database, timeout=60)
    batch = 0
    for start in range(index * BATCH, ENTRIES, THREADS * BATCH):
        digest = hashlib.sha256()
        for number in range(start, min(start + BATCH, ENTRIES)):
            value = entry(number)
            table[number] = value
            digest.update(value.encode())
        batch += 1
        line = b"%d %d %s\n" % (index, batch, digest.hexdigest().encode())
        if os.write(log, line) != len(line):
            raise SystemExit("a short write to the log")
        store(connection, index, batch, digest.hexdigest())
        if batch % 10 == 0:
            outputs[index, batch] = run_again_if_lost(["/bin/sh", "-c", f"echo {index} {batch} $(({batch} * 7))"])
        progress[index] += 1
    connection.close()


def create_database():
    connection = sqlite3.connect(database)
    connection.execute("create table rows (worker integer, batch integer, digest text)")
    connection.commit()
    connection.close()


def show(name, pieces):
    digest = hashlib.sha256()
    count = 0
    for piece in pieces:
        digest.update(repr(piece).encode())
        count += 1
    print(f"{name}: {count} {digest.hexdigest()}")


def main():
    create_database()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = sum(1 for number, value in table.items() if value != entry(number))
    show("table", sorted(table.items()))
    print(f"wrong: {wrong}")
    with open(os.path.join(DIRECTORY, "log"), encoding="ascii") as lines:
        show("log", sorted(lines))
    connection = sqlite3.connect(database)
    show("rows", connection.execute("select * from rows order by worker, batch"))
    print("integrity:", *connection.execute("pragma integrity_check").fetchone())
    show("outputs", sorted(outputs.items()))
    print("batches:", sum(progress))


main()
