"""The media that a store can lie on inside the machine, and how it gets there.

Key type: Medium, one for each name in MEDIA. Neighbours: machine.py (the devices), rig.py.
"""

import dataclasses

EXT4 = "/usr/sbin/mke2fs -q -t ext4 -E stride=512,stripe_width=512 {device}"
# No commit of the journal because time has passed: it takes ten minutes, longer than any cycle.
MOUNT_EXT4 = "mount -t ext4 -o {option}commit=600 {device} /store"
XFS = "/usr/sbin/mkfs.xfs -q -f -m reflink=1 -d su=2m,sw=1 {device}"
MOUNT_XFS = "mount -t xfs -o {option}noatime {device} /store && echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs"
# A raw namespace has no DAX.
NAMESPACE = "ndctl create-namespace -f {which} -m fsdax --map=mem --align=2M >/tmp/namespace"
# The driver of 6.1 does not find a region again by itself: it is made anew at each boot, under the same UUID, and finds
# the namespace by that.
UUID = "7d1f0c1e-4c54-4b19-9b46-0f0f5d0a7c11"
REGION = f"cxl create-region -m -d decoder0.0 -w 1 -s 768M -t pmem -u {UUID} mem0 >/tmp/region"


@dataclasses.dataclass(frozen=True)
class Medium:
    """Lines of shell that make the file system once, and those that mount it at each boot."""

    machine: str
    device: str
    make: str
    mount: str
    option: str
    # Whether mapped pages are the medium itself.
    direct: bool
    # At the first boot, and at each.
    once: str = ":"
    each: str = ":"

    def prepare(self, machine, first):
        """Mounts it on /store; before, at the first boot, makes it."""
        machine.do(self.each)
        if first:
            machine.do(self.once)
        machine.do(f"for i in $(seq 100); do [ -b {self.device} ] && break; sleep 0.1; done; [ -b {self.device} ]")
        if first:
            machine.do(self.make.format(device=self.device))
        machine.do(self.mount.format(device=self.device, option=self.option))


def pmem(make, mount, option):
    """On the NVDIMM."""
    once = NAMESPACE.format(which="-e namespace0.0")
    return Medium("nvdimm", "/dev/pmem0", make, mount, option, option == "dax=always,", once)


MEDIA = {
    "ext4": pmem(EXT4, MOUNT_EXT4, "dax=always,"),
    "xfs": pmem(XFS, MOUNT_XFS, "dax=always,"),
    "cxl": Medium(
        "cxl", "/dev/pmem0", EXT4, MOUNT_EXT4, "dax=always,", True, NAMESPACE.format(which="-r region0"), REGION
    ),
    "disk": Medium("disk", "/dev/vda", EXT4, MOUNT_EXT4, "", False),
    # For the controls only.
    "nodax": pmem(EXT4, MOUNT_EXT4, "dax=never,"),
}
