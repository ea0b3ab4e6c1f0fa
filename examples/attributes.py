"""Attributes of the process that the kernel holds: set once, looked at again and again.

    attributes.py [STEPS]

Niceness, processors, file mode mask, working directory, arguments, name of a thread, limits, scheduling, an unlinked
open file, open files of threads.
"""

import os
import resource
import sys
import tempfile
import threading
import time

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60

os.nice(3)
processor = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {processor})
os.mkdir("deeper")
os.chdir("deeper")
os.umask(0o027)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
unlinked = tempfile.TemporaryFile(dir=".")
unlinked.write(b"kept though nobody can see it")
unlinked.flush()
named = threading.Event()


def worker():
    with open("/proc/thread-self/comm", "w") as comm:
        comm.write("worker")
    named.set()
    while not done.is_set():
        # Mostly open: a file of a thread is still that thread's after a failure.
        with open("/proc/thread-self/comm") as comm:
            time.sleep(0.02)
            names.add(comm.read())


names = set()
done = threading.Event()
thread = threading.Thread(target=worker)
thread.start()
named.wait()


def look():
    # With such a mask nobody could open again what a save makes.
    old = os.umask(0o777)
    time.sleep(0.01)
    os.umask(old)
    unlinked.seek(0)
    with open("/proc/self/cmdline", "rb") as file:
        arguments = file.read().split(b"\0")
    return (
        os.nice(0),
        sorted(os.sched_getaffinity(0)),
        oct(old),
        os.path.basename(os.getcwd()),
        os.path.basename(arguments[1]),
        resource.getrlimit(resource.RLIMIT_CORE),
        unlinked.read(),
        os.getpid(),
        os.getppid(),
        threading.get_native_id() == os.getpid(),
        [file.seek(0) or file.read() for file in main_files],
        os.sched_getscheduler(0),
    )


# Files of the main thread, open all the time.
main_files = [open("/proc/self/comm"), open("/proc/thread-self/comm")]
os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
first = look()
for step in range(STEPS):
    now = look()
    if now != first:
        done.set()
        sys.exit(f"step {step}: {now} instead of {first}")
    time.sleep(0.015)
done.set()
thread.join()
print("niceness", first[0], "mask", first[2], "in", first[3], "as", first[4], "limit", first[5], first[6], *first[9:], names)
