"""A Python handler for SIGPWR runs exactly once per power failure, after the resume.

    recovery.py [STEPS]

Prints one line per call, so that the test can count them; natively none comes.
"""

import os
import signal
import sys
import threading
import time

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
recovered = 0


def on_power(number, frame):
    global recovered
    recovered += 1
    main = threading.current_thread() is threading.main_thread()
    os.write(1, f"recovery {recovered} signal {number} main {int(main)} frame {int(frame is not None)}\n".encode())


signal.signal(signal.SIGPWR, on_power)
if signal.getsignal(signal.SIGPWR) is not on_power:
    raise SystemExit("the handler is not there")
total = 0
for step in range(STEPS):
    total += sum(range(500))
    # An interrupted sleep goes on with what is left (PEP 475).
    before = time.monotonic()
    time.sleep(0.001)
    if time.monotonic() - before < 0.001:
        raise SystemExit("a sleep ended early")
print(f"steps {STEPS} total {total}")
