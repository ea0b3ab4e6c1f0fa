"""A program that has taken every descriptor that it may have, and works on.

    full_descriptors.py [STEPS] [LATER]

LATER: its limit is lowered to this, when it has taken them: it has more of them than it may have.
"""

import os
import resource
import sys
import threading

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 400
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
reader, writer = os.pipe()
while True:
    try:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        print(error.strerror)
        break
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), 64))


def take_one_more():
    """As accept loops do: tries again and again, and would have what is free for a moment."""
    while not done:
        try:
            extra.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass


done, extra = False, []
takers = [threading.Thread(target=take_one_more) for _ in range(2)]
for taker in takers:
    taker.start()
total = 0
for step in range(STEPS):
    os.write(writer, b"%d" % step)
    total += int(os.read(reader, 16)) + sum(range(20_000)) % 7
    try:
        os.dup(0)
    except OSError:
        total += 1
    else:
        sys.exit("a descriptor too many")
done = True
for taker in takers:
    taker.join()
if extra:
    sys.exit(f"descriptors too many: {extra}")
print(total, resource.getrlimit(resource.RLIMIT_NOFILE), os.read(taken[-1], 1))
os.close(taken.pop())
if len(sys.argv) <= 2:
    print(os.dup(0) >= 0)
