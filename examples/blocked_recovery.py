"""SIGPWR is blocked while the failures come: the recovery signal is taken later, once, like any pending signal.

    blocked_recovery.py [STEPS]
"""

import signal
import sys
import time

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
count = 0


def handler(number, _frame):
    global count
    count += 1


signal.signal(signal.SIGPWR, handler)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPWR])
for step in range(STEPS):
    time.sleep(0.025)
if count:
    sys.exit("the handler ran though its signal was blocked")
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPWR])
print("handled", count)
