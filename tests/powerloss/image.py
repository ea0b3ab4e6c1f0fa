"""What a machine boots: a kernel from the archive, and an initramfs with the programs of this machine.

Key functions: kernel(), initramfs(). The kernel's package is downloaded and unpacked, never installed, and kept below
the cache directory. Programs and their libraries come from the packages that ci/powerloss has installed. Neighbours:
machine.py (boots it), guest/ (what is in it of ours).
"""

import lzma
import os
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
# What the kernel packages leave as modules. Those that a kernel has built in, or does not have, are passed over; what
# one of these depends on is loaded before it.
MODULES = ["nfit", "nd_pmem", "nd_btt", "dax_pmem", "xfs", "virtio_pci", "virtio_blk"]
CXL_MODULES = ["cxl_acpi", "cxl_pci", "cxl_mem", "cxl_pmem", "cxl_port"]
PROGRAMS = ["ndctl", "cxl", "mke2fs", "mkfs.xfs", "python3", "memcached"]
# Large parts of Python's library that nothing here imports.
LEFT_OUT = {"test", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "distutils", "turtledemo"}


def output_of(*command, **options):
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, **options).stdout


def kernel_package():
    """The archive's cloud kernel, or the one that ZHUQUE_KERNEL names."""
    wanted = os.environ.get("ZHUQUE_KERNEL")
    if wanted:
        return wanted
    depends = output_of("apt-cache", "depends", "linux-image-cloud-amd64")
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if not found:
        raise SystemExit("powerloss: no package linux-image-cloud-amd64 in the archive; name one with ZHUQUE_KERNEL")
    return found[1]


def kernel(cache):
    """Paths of the kernel and of its modules."""
    package = kernel_package()
    root = cache / package
    if not (root / "vmlinux").exists():
        fetch(package, root)
    [modules] = [*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")]
    return root / "vmlinux", modules


def fetch(package, root):
    """Downloads and unpacks it. The name appears when everything is there."""
    temporary = root.with_name(f".{package}.{os.getpid()}")
    temporary.mkdir(parents=True)
    # apt's own user may not enter the directory, and apt says so; the download is checked in any case.
    output_of("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=temporary)
    [archive] = temporary.glob("*.deb")
    output_of("dpkg-deb", "-x", archive, temporary)
    archive.unlink()
    [image] = (temporary / "boot").glob("vmlinuz-*")
    (temporary / "vmlinux").write_bytes(uncompressed(image.read_bytes()))
    subprocess.run(["rm", "-rf", root], check=True)
    temporary.rename(root)


def uncompressed(image):
    """The kernel proper of a bzImage, which boots faster; the whole where it is compressed in another way."""
    for found in re.finditer(re.escape(b"\xfd7zXZ\0"), image):
        try:
            inner = lzma.LZMADecompressor().decompress(image[found.start() :])
        except lzma.LZMAError:
            continue
        if inner.startswith(b"\x7fELF"):
            return inner
    return image


class Archive:
    """An initramfs: a cpio archive of the "newc" form."""

    def __init__(self):
        self.pieces = []
        self.names = set()

    def put(self, name, mode, content):
        """Adds one entry, and the directories above it."""
        name = name.strip("/")
        if name in self.names:
            return
        parent = os.path.dirname(name)
        if parent:
            self.put(parent, 0o40755, b"")
        self.names.add(name)
        encoded = name.encode() + b"\0"
        fields = [len(self.names), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        for piece in (head, content):
            self.pieces += [piece, b"\0" * (-len(piece) % 4)]

    def link(self, name, to):
        """Adds a symbolic link."""
        self.put(name, 0o120777, to.encode())

    def file(self, source, name=None):
        """Adds a file of this machine, under its own path if no name is given."""
        executable = os.access(source, os.X_OK)
        path = name or os.path.realpath(os.path.dirname(source)) + "/" + os.path.basename(source)
        self.put(path, 0o100755 if executable else 0o100644, pathlib.Path(source).read_bytes())

    def program(self, source, name=None):
        """Adds a program or library with all libraries that it needs."""
        self.file(source, name)
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, timeout=60, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            self.file(library)

    def bytes(self):
        """The whole."""
        self.put("TRAILER!!!", 0, b"")
        return b"".join(self.pieces)


def find(program):
    """Where a program of the packages is; not one that somebody put before them in PATH."""
    for directory in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        path = os.path.join(directory, program)
        if os.access(path, os.X_OK):
            return path
    raise SystemExit(f"powerloss: {program} is not installed")


def module_order(modules, wanted):
    """Files of modules, each after those that it depends on."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    order = {}

    def add(name):
        if name not in files or name in order:
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        for needed in re.search(rb"\0depends=([^\0]*)\0", content)[1].decode().split(","):
            add(needed.replace("-", "_"))
        order[name] = content

    for name in wanted:
        add(name)
    return order


def add_python(archive):
    """The interpreter of the package and its library, compiled files included: they save seconds of imports."""
    interpreter = os.path.realpath(find("python3"))
    archive.program(interpreter)
    archive.link("/usr/bin/python3", os.path.basename(interpreter))
    library = "/usr/lib/" + os.path.basename(interpreter)
    for directory, inner, files in os.walk(library):
        inner[:] = [name for name in inner if name not in LEFT_OUT and not name.startswith("config-")]
        for name in files:
            path = os.path.join(directory, name)
            if directory.endswith("lib-dynload"):
                archive.program(path)
            else:
                archive.file(path)


def initramfs(modules, zhuque, to):
    """Writes it: busybox, the programs, the kernel's modules in their order, zhuque, the examples, and guest/."""
    archive = Archive()
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.link(name, f"usr/{name}")
    for name in ("dev", "proc", "sys", "tmp", "root", "store"):
        archive.put(name, 0o40755, b"")
    archive.put("etc/passwd", 0o100644, b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file(find("busybox"), "/usr/bin/busybox")
    archive.link("/usr/bin/sh", "busybox")
    for name in PROGRAMS:
        archive.program(os.path.realpath(find(name)))
        archive.program(find(name))
    add_python(archive)
    archive.program(zhuque, "/usr/bin/zhuque")
    for path in [*(HERE / "guest").iterdir(), *(TOP / "examples").glob("*.py")]:
        if path.is_file():
            archive.file(path, f"/rig/{path.name}")
    archive.link("/init", "rig/init")
    for kind, wanted in (("usual", MODULES), ("cxl", CXL_MODULES)):
        for number, (name, content) in enumerate(module_order(modules, wanted).items()):
            archive.put(f"/modules/{kind}/{number:02}-{name}.ko", 0o100644, content)
    to.write_bytes(archive.bytes())
    return to
