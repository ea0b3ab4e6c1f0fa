"""A real power loss: programs run under zhuque in a virtual machine, which is killed and booted again.

    rig.py ZHUQUE DIRECTORY CACHE [ext4|xfs|cxl|disk|quiet|controls|unannounced] [CYCLES]

One cycle: boot, start or resume memcached and two Python programs, load, `zhuque fail --all`, SIGKILL to the machine
as soon as it says that all are saved. The next boot resumes them and compares: every key that had been acknowledged to
this host, with its value; what the Python programs print at their end, with an uninterrupted run. A cycle that compared
nothing has failed. The seed is printed; ZHUQUE_SEED repeats it.

`quiet` has one program alone, which has discarded memory right before the failure, and nothing that would make the file
system write that down. The controls say what the machine shows: a mapping without MAP_SYNC, and one without DAX, *must
lose* what they wrote; one with MAP_SYNC must keep it. Each on a file system of its own: beside a writer with MAP_SYNC, the others' data would
survive with its commits. `unannounced` kills the machine without a word: a resume must be refused, and
`zhuque inspect` still show what is left. Neighbours: image.py, machine.py, stores.py, guest/.
"""

import itertools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import image
from machine import Failure, Machine
from stores import MEDIA

# Acknowledged keys that a cycle needs; in as much time as it takes.
ENOUGH = 100
PATIENCE = 120
USUAL = {"ext4": 10, "xfs": 5, "cxl": 5, "disk": 5, "quiet": 3, "controls": 3, "unannounced": 3}


def programs(cycles):
    """Command lines by name. The Python programs are as long as the cycles are many."""
    counting = f"python3 /rig/counting.py {40 + 30 * cycles}"
    hashing = f"python3 /rig/hashing.py {20_000 + 40_000 * cycles} /store/work"
    discarding = f"python3 /rig/discarding.py {10 + 20 * cycles} 0.1"
    memcached = "memcached -u root -m 128 -U 0 -l 127.0.0.1"
    return {"memcached": memcached, "counting": counting, "hashing": hashing, "discarding": discarding}


class Rig:
    """One medium and the programs on it, over several boots."""

    def __init__(self, boot, directory, medium, cycles, random_source):
        self.boot, self.medium, self.random = boot, MEDIA[medium], random_source
        self.name, self.cycles = medium, cycles
        self.directory = directory / medium
        self.directory.mkdir()
        self.programs = programs(cycles)
        self.loads = []
        self.boots = 0
        self.machine = None
        self.ended = set()

    def start_machine(self):
        """The next boot, with one processor or two."""
        self.machine = Machine(self.boot, self.directory, self.medium.machine, self.random.choice([1, 2]))
        self.boots += 1
        self.medium.prepare(self.machine, self.boots == 1)

    def close(self):
        if self.machine:
            self.machine.lose_power()
        shutil.rmtree(self.directory)

    def regions(self):
        """What `ls` says, by name."""
        said = self.machine.do("zhuque ls --json")
        try:
            return {region["name"]: region for region in json.loads(said)}
        except ValueError:
            raise Failure(f"`zhuque ls --json` said {said!r}") from None

    def states(self):
        """The states of all programs; those that have ended by then are compared at the end, as all are."""
        regions = self.regions()
        self.ended = {name for name in self.programs if regions[name]["state"] == "ended"}
        return [regions[name]["state"] for name in self.programs]

    def start_programs(self):
        self.machine.do("mkdir -m 700 /store/zhuque /store/work")
        for name, command in self.programs.items():
            # Emulated, and beside others, a save may take a thousand times as long as on a machine of its own.
            run = f"zhuque run -d --keep --hold-up 30s -n {name} -- {command} {files(name)}"
            self.machine.do(f"{run} || ! cat /store/{name}.err", PATIENCE)
        if self.medium.direct:
            self.check_sync()

    def check_sync(self):
        """The kernel's own word that stores to region memory are durable: "sf" for every mapping of a slice."""
        pid = next(iter(self.regions().values()))["pid"]
        text = self.machine.do(f"awk '/^[0-9a-f]+-/ {{name = $6}} /^VmFlags/ && name ~ /slice/' /proc/{pid}/smaps")
        flags = [line.split() for line in text.splitlines()]
        if not flags or not all("sf" in words for words in flags):
            raise Failure(f"region memory is mapped without MAP_SYNC: {text}")

    def resume_programs(self):
        """Resumes all that were saved. The generations; raises if one is not as it must be."""
        failures = self.boots - 1
        regions = self.regions()
        for name in self.programs:
            if name in self.ended:
                continue
            state, generation = regions[name]["state"], regions[name]["generation"]
            if (state, generation) != ("saved", failures - 1):
                raise Failure(f"{name} is {state}, generation {generation} after {failures} failures")
            self.machine.do(f"zhuque resume -d --keep {name} {files(name)} || ! tail -n 3 /store/{name}.err", PATIENCE)
        regions = self.regions()
        for name in self.programs:
            if regions[name]["state"] not in ("running", "ended"):
                raise Failure(f"{name} is {regions[name]['state']} after its resume")
        return failures

    def load(self):
        """Sets keys for a while."""
        seed = self.random.getrandbits(32)
        self.machine.do(f"python3 /rig/client.py load {seed:x} >/tmp/client 2>&1 </dev/null &")
        self.machine.gather(self.random.uniform(0.3, 2.0), ENOUGH, PATIENCE)
        return seed

    def fail(self, seed):
        """The announced failure, and the end of the machine. What each program's save took."""
        _, said = self.machine.ask("zhuque fail --all 2>&1", PATIENCE)
        # It gives up after 10 s, which an emulated machine may need for writing back to its disk; the save goes on.
        deadline = time.monotonic() + PATIENCE
        while (states := self.states()).count("running") and time.monotonic() < deadline:
            time.sleep(0.2)
        self.machine.lose_power()
        done = self.machine.acknowledgements()
        if done < ENOUGH:
            raise Failure(f"only {done} keys were acknowledged")
        self.loads.append((seed, done))
        if states.count("saved") < min(2, len(self.programs)) or not {"saved", "ended"}.issuperset(states):
            raise Failure(f"not saved: {states}: {said}")
        return dict(re.findall(r"^(\w+): saved .* in ([0-9.]+ \S+)", said, re.MULTILINE))

    def verify(self):
        """Asks memcached for every key of every load until now: how many, and their bytes."""
        loads = " ".join(f"{seed:x}:{done}" for seed, done in self.loads)
        said = self.machine.do(f"python3 /rig/client.py verify {loads} 2>&1", PATIENCE)
        keys, size, wrong = map(int, re.search(r"checked (\d+) (\d+) (\d+)", said).groups())
        if wrong or keys < ENOUGH:
            raise Failure(f"{wrong} of {keys} keys are wrong: {said}")
        return keys, size

    def cycle(self, number):
        """Starts or resumes, loads, fails. What was compared is that the *previous* one has kept."""
        self.start_machine()
        if number == 1:
            self.start_programs()
        else:
            self.compare(number - 1)
        self.wait_for_memcached()
        return self.fail(self.load())

    def wait_for_memcached(self):
        self.machine.do("for i in $(seq 200); do nc 127.0.0.1 11211 </dev/null && break; sleep 0.1; done", PATIENCE)

    def compare(self, number):
        """After the boot that follows failure `number`: everything is there."""
        generation = self.resume_programs()
        self.wait_for_memcached()
        keys, size = self.verify()
        saved = ", ".join(f"{took} ({name})" for name, took in self.saved.items()) or "more than 10 s"
        print(
            f"{self.name} cycle {number}: {keys:,} keys and {size:,} bytes of memcached are there; generation"
            f" {generation}; saved in {saved}; booted in {self.machine.booted:.1f} s",
            flush=True,
        )

    def finish(self):
        """Lets the Python programs end, and compares what they have printed."""
        compared = 0
        for name in [name for name in self.programs if name != "memcached"]:
            deadline = time.monotonic() + PATIENCE + 20 * self.cycles
            while self.regions()[name]["state"] == "running" and time.monotonic() < deadline:
                time.sleep(0.5)
            # `zhuque run -d` and `zhuque resume -d` print the name of what they have started.
            printed = self.machine.do(f"grep -vx {name} /store/{name}.out")
            expected = natively(self.programs[name], self.directory)
            if printed.splitlines() != expected.splitlines():
                raise Failure(f"{name}'s output: {difference(printed, expected)}")
            print(f"{self.name}: {len(expected):,} bytes of {name}'s output as of an uninterrupted run", flush=True)
            compared += 1
        self.machine.do(f"zhuque rm {' '.join(self.programs)}")
        return compared

    def run(self):
        """All cycles; then one more boot for the last comparison."""
        for number in range(1, self.cycles + 1):
            self.saved = self.cycle(number)
        self.start_machine()
        self.compare(self.cycles)
        self.finish()


def files(name):
    """Standard input, output and error of a program in the machine."""
    return f"</dev/null >>/store/{name}.out 2>>/store/{name}.err"


def difference(printed, expected):
    """Where two texts begin to differ."""
    lines = itertools.zip_longest(printed.splitlines(), expected.splitlines())
    number, (is_line, was_line) = next((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return f"line {number} is {is_line!r}, of an uninterrupted run {was_line!r}; {len(printed)} bytes, {len(expected)}"


def natively(command, directory):
    """What an uninterrupted run prints, on this host."""
    work = directory / "native"
    work.mkdir(exist_ok=True)
    words = command.replace("/rig/", f"{image.TOP}/examples/").replace("/store/work", str(work)).split()
    return image.output_of(image.find(words[0]), *words[1:])


def unannounced(boot, directory, cycles, source):
    """Kills without a word; the documented refusal, and nothing else, follows."""
    for number in range(1, cycles + 1):
        rig = Rig(boot, directory, source.choice(["ext4", "xfs"]), 1, source)
        try:
            rig.start_machine()
            rig.start_programs()
            rig.wait_for_memcached()
            rig.load()
            rig.machine.lose_power()
            done = rig.machine.acknowledgements()
            rig.start_machine()
            print(f"unannounced cycle {number}: {refusals(rig)}; {done} keys had been set, on {rig.name}", flush=True)
        finally:
            rig.close()


def refusals(rig):
    """Every region is unsaved, cannot be resumed, can be inspected, and makes room for a new one."""
    machine, shown = rig.machine, 0
    for name, command in rig.programs.items():
        state = rig.regions()[name]["state"]
        status, said = machine.ask(f"zhuque resume {name} 2>&1 </dev/null")
        if (state, status) != ("unsaved", 125) or "ended without being saved; zhuque inspect" not in said:
            raise Failure(f"{name} is {state}; zhuque resume {name}: {status}: {said}")
        for what in ("", "maps", "threads"):
            text = machine.do(f"zhuque inspect {name} {what} 2>&1")
            shown += len(text.splitlines())
        # What only the kernel knew was never written down.
        status, said = machine.ask(f"zhuque inspect {name} fds 2>&1")
        if status != 125 or "there is no journal" not in said:
            raise Failure(f"zhuque inspect {name} fds: {status}: {said}")
        json.loads(machine.do(f"zhuque inspect --json {name}"))
        machine.do(f"zhuque rm {name}")
        machine.do(f"rm -rf /store/work/*; zhuque run -d -n {name} -- {command} {files(name)}", PATIENCE)
        if rig.regions()[name]["state"] != "running":
            raise Failure(f"{name} does not run again")
    return f"{len(rig.programs)} resumes refused, {shown} lines inspected, started anew"


def quiet(boot, directory, cycles, source):
    """What a program has discarded must not be back, also where nothing is written after it."""
    for number in range(1, cycles + 1):
        rig = Rig(boot, directory, source.choice(["ext4", "xfs"]), 1, source)
        rig.programs = {"discarding": "python3 /rig/discarding.py 10 1.0"}
        try:
            rig.start_machine()
            rig.start_programs()
            time.sleep(source.uniform(1.0, 4.0))
            said = rig.machine.do("zhuque fail --all 2>&1", PATIENCE)
            rig.machine.lose_power()
            if not said.startswith("discarding: saved"):
                raise Failure(f"not saved: {said}")
            rig.start_machine()
            rig.resume_programs()
            print(f"quiet cycle {number}: on {rig.name}, {said}", flush=True)
            rig.finish()
        finally:
            rig.close()


def controls(boot, directory, cycles, source):
    """What must be lost, and what must not, without zhuque."""
    for number in range(1, cycles + 1):
        said = []
        for medium, sync, kept in (("ext4", "", False), ("nodax", "", False), ("ext4", "sync", True)):
            rig = Rig(boot, directory, medium, 1, source)
            try:
                found, pages = control(rig, sync)
            finally:
                rig.close()
            if found != (pages if kept else min(found, pages - 1)):
                must = "kept" if kept else "lost"
                raise Failure(f"control {medium} {sync}: {found} of {pages} pages are there, which must be {must}")
            said.append(f"{MEDIA[medium].option.strip(',')} {'with' if sync else 'without'} MAP_SYNC {found}/{pages}")
        print(f"controls cycle {number}: pages kept: {', '.join(said)}", flush=True)


def control(rig, sync):
    """One writer: pages that are there after the power loss, and pages written."""
    seed = rig.random.getrandbits(32)
    rig.start_machine()
    rig.machine.do(f"python3 /rig/writer.py write /store/data {seed:x} {sync} >/tmp/writer 2>&1 </dev/null &")
    rig.machine.do("for i in $(seq 300); do grep -q written /tmp/writer && break; sleep 0.1; done; cat /tmp/writer")
    rig.machine.do("grep -q written /tmp/writer")
    rig.machine.lose_power()
    rig.start_machine()
    said = rig.machine.do(f"python3 /rig/writer.py check /store/data {seed:x}")
    return map(int, re.search(r"found (\d+) (\d+)", said).groups())


def main():
    zhuque, directory, cache = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    wanted = sys.argv[4:5] or list(USUAL)
    if wanted[0] not in USUAL or not all(word.isdigit() and int(word) for word in sys.argv[5:6]) or sys.argv[6:]:
        raise SystemExit(f"usage: ci/powerloss [{'|'.join(USUAL)}] [CYCLES]")
    began, failed = time.monotonic(), []
    seed = int(os.environ.get("ZHUQUE_SEED") or random.SystemRandom().getrandbits(32))
    source = random.Random(seed)
    vmlinux, modules = image.kernel(cache)
    boot = vmlinux, image.initramfs(modules, zhuque, directory / "initrd")
    print(f"kernel {modules.name}, this host's is {os.uname().release}; seed {seed}", flush=True)
    for name in wanted:
        cycles = int(sys.argv[5]) if sys.argv[5:] else USUAL[name]
        try:
            if name in OTHERS:
                OTHERS[name](boot, directory, cycles, source)
            else:
                announced(boot, directory, name, cycles, source)
        except (Failure, subprocess.SubprocessError, OSError) as failure:
            print(f"{name}: FAILED: {failure}", flush=True)
            failed.append(name)
    took = time.monotonic() - began
    print(f"{len(wanted) - len(failed)} of {len(wanted)} passed in {took:.0f} s; failed: {', '.join(failed) or 'none'}")
    raise SystemExit(1 if failed else 0)


def announced(boot, directory, name, cycles, source):
    """The cycles of one medium."""
    rig = Rig(boot, directory, name, cycles, source)
    if name == "cxl":
        # Every access to this memory is emulated one by one, a hundred times slower than to the NVDIMM.
        rig.programs = {"memcached": rig.programs["memcached"]}
    try:
        rig.run()
    finally:
        rig.close()


OTHERS = {"quiet": quiet, "controls": controls, "unannounced": unannounced}
main()
