"""A virtual machine with persistent memory, which can lose power.

Key type: Machine. It is emulated (never KVM: Debian's kernels do not run under every host's). Three serial ports: the
console, kept in a file; the guest's init, which takes lines of shell; and what its client says was acknowledged.
Neighbours: image.py (what is booted), guest/init (the other end), rig.py.
"""

import contextlib
import ctypes
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
# A boot takes 3 to 6 s; more than this is a hang.
BOOT = 120
MEMORY = 768 << 20
CXL_MEMORY = 768 << 20


class Failure(Exception):
    """What the rig reports as a failure of a cycle."""


def sparse(path, size):
    """A file of zeros."""
    with open(path, "wb") as file:
        file.truncate(size)


class Line:
    """One end of a serial port."""

    def __init__(self, path, deadline):
        self.rest = b""
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(str(path))
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def receive(self, seconds):
        """Whatever has come, within some time; nothing at the end of the machine."""
        if not select.select([self.socket], [], [], max(0, seconds))[0]:
            return b""
        return self.socket.recv(1 << 16)

    def lines(self, deadline):
        """Complete lines, until the deadline."""
        while True:
            while b"\n" in self.rest:
                line, self.rest = self.rest.split(b"\n", 1)
                yield line.decode(errors="replace").rstrip("\r")
            got = self.receive(deadline - time.monotonic())
            if not got:
                return
            self.rest += got


class Machine:
    """A running one. `directory` holds its memory from one boot to the next; `kind`: nvdimm, cxl or disk."""

    def __init__(self, boot, directory, kind, processors):
        self.directory = pathlib.Path(directory)
        self.console = self.directory / "console"
        began = time.monotonic()
        for name in ("c", "a"):
            with contextlib.suppress(FileNotFoundError):
                (self.directory / name).unlink()
        vmlinux, initrd = boot
        arguments = "console=ttyS0,115200 quiet panic=-1 tsc=reliable clocksource=tsc 8250.nr_uarts=4"
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi"),
                *("-cpu", "max", "-smp", str(processors), "-m", "768,slots=4,maxmem=8G"),
                *("-kernel", vmlinux, "-initrd", initrd, "-append", arguments),
                *("-serial", f"file:{self.console}"),
                *self.port("c"),
                *self.port("a"),
                *getattr(self, kind)(),
            ],
            # Whatever ends this process ends the machine with it.
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.directory / "qemu", "wb"),
        )
        try:
            self.control = Line(self.directory / "c", began + 20)
            self.acknowledged = Line(self.directory / "a", began + 20)
            self.answer(BOOT)
        except BaseException:
            self.lose_power()
            raise
        self.booted = time.monotonic() - began

    def port(self, name):
        path = self.directory / name
        return ["-chardev", f"socket,id={name},path={path},server=on,wait=off", "-serial", f"chardev:{name}"]

    def file(self, name, size):
        """A file of the machine's memory or disk, made at the first boot."""
        path = self.directory / name
        if not path.exists():
            sparse(path, size)
        return path

    def nvdimm(self):
        memory = f"memory-backend-file,id=m0,share=on,mem-path={self.file('nvdimm', MEMORY)},size={MEMORY},align=2M"
        return ["-machine", "pc,nvdimm=on", "-object", memory, "-device", "nvdimm,id=nv0,memdev=m0"]

    def disk(self):
        # What the guest's kernel has not written yet is lost with it; what it has, is in the file.
        drive = f"file={self.file('disk', MEMORY)},format=raw,if=none,id=d0,cache=writethrough"
        return ["-machine", "pc", "-drive", drive, "-device", "virtio-blk-pci,drive=d0"]

    def cxl(self):
        # Two root ports: with a single one, writes vanish. The serial number must not be zero.
        memory = f"memory-backend-file,share=on,id=cm0,size={CXL_MEMORY},mem-path={self.file('cxl', CXL_MEMORY)}"
        labels = f"memory-backend-file,share=on,id=lsa0,size=256K,mem-path={self.file('lsa', 256 << 10)}"
        return [
            *("-machine", "q35,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G"),
            *("-object", memory, "-object", labels),
            *("-device", "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1"),
            *("-device", "cxl-rp,port=0,bus=cxl.1,id=rp0,chassis=0,slot=2"),
            *("-device", "cxl-rp,port=1,bus=cxl.1,id=rp1,chassis=0,slot=3"),
            *("-device", "cxl-type3,bus=rp0,memdev=cm0,lsa=lsa0,id=cxlpmem0,sn=0x1234"),
        ]

    def answer(self, seconds):
        """Status and output of the line that was sent."""
        said = []
        for line in self.control.lines(time.monotonic() + seconds):
            if line.startswith("@@ "):
                return int(line[3:]), "\n".join(said)
            said.append(line)
        tail = self.console.read_bytes()[-1500:].decode(errors="replace") if self.console.exists() else ""
        tail += (self.directory / "qemu").read_bytes()[-500:].decode(errors="replace")
        raise Failure(f"the machine does not answer within {seconds} s: {said[-5:]}; console: {tail}")

    def ask(self, line, seconds=60):
        """Lets the guest run a line of shell; its status and output."""
        self.control.socket.sendall(line.encode() + b"\n")
        return self.answer(seconds)

    def do(self, line, seconds=60):
        """The output of a line that must succeed."""
        status, said = self.ask(line, seconds)
        if status != 0:
            raise Failure(f"`{line}` ended with {status}: {said}")
        return said

    def lose_power(self):
        """SIGKILL, and nothing before it."""
        self.process.kill()
        self.process.wait()
        if hasattr(self, "control"):
            # The other line is still read: what was said before the end counts.
            self.control.socket.close()

    def gather(self, seconds, enough, patience):
        """Takes acknowledgements for some time, and until they are enough; the client must not wait for a reader."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds or self.acknowledged.rest.count(b"\n") < enough:
            if passed > patience or self.process.poll() is not None:
                raise Failure(f"{self.acknowledged.rest.count(10)} acknowledgements in {passed:.0f} s")
            self.acknowledged.rest += self.acknowledged.receive(0.05)

    def acknowledgements(self):
        """What the client has said, all of it, after the power went; the last one may be half a line."""
        received = self.acknowledged.rest
        while got := self.acknowledged.receive(1):
            received += got
        self.acknowledged.socket.close()
        self.acknowledged.rest = b""
        return received.count(b"\n")

