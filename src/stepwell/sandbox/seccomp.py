"""The system calls that a program in the sandbox is refused, as a filter that bubblewrap loads.

A program of classic BPF over `struct seccomp_data` (Linux, Documentation/userspace-api/seccomp_filter.rst): call number
at byte 0, architecture at byte 4, the arguments as 8 bytes each from byte 16. What is refused is what reaches for other
processes, namespaces, mounts, kernel modules, keys and clocks, and what holds memory that no limit counts (shared
memory segments, memory files, message queues).
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT, SECOND_ARGUMENT_AT = 0, 4, 16, 24

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> (its AUDIT_ARCH number, its column below)."""

REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "syslog": (103, 116), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "personality": (135, 92), "vhangup": (153, 58),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "remap_file_pages": (216, 234),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "fanotify_init": (300, 262), "inotify_init1": (294, 26),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
"""Call -> its number on x86_64, on aarch64. They fail with EPERM."""

ONLY_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154, "inotify_init": 253, "uselib": 134}
CLONE, CLONE3, SOCKET, IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
FIRST_UNKNOWN = 451
"""Calls from here on are younger than this table. They do not exist for the program; libraries know what to do then."""

NEW_NAMESPACES = 0x7E020080
"""The flags of clone that make a namespace: NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

AF_UNIX, TIOCSTI, TIOCLINUX = 1, 0x5412, 0x541C
X32 = 0x40000000


def filter_program(machine: str | None = None) -> bytes | None:
    """The filter for this machine's kind of processor; None where the numbers of its calls are not known here."""
    column = ARCHITECTURES.get(machine or platform.machine())
    if column is None or sys.byteorder != "little":
        return None
    architecture, place = column
    refuse, missing = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    steps = [(LOAD, 0, 0, ARCHITECTURE_AT), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    # x32 numbers its calls from X32 on: those are refused with all that is younger than the table.
    steps += [(AT_LEAST, 0, 1, FIRST_UNKNOWN), (RETURN, 0, 0, missing)]
    # clone3 keeps its flags in memory, which a filter cannot read; told that it is missing, libraries call clone.
    steps += [(EQUAL, 0, 1, CLONE3[place]), (RETURN, 0, 0, missing)]
    numbers = [pair[place] for pair in REFUSED.values()] + (list(ONLY_X86.values()) if place == 0 else [])
    for number in numbers:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, refuse)]
    steps += [(EQUAL, 0, 4, CLONE[place]), (LOAD, 0, 0, FIRST_ARGUMENT_AT), (ANY_BIT, 0, 1, NEW_NAMESPACES)]
    steps += [(RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)]
    steps += [(EQUAL, 0, 4, SOCKET[place]), (LOAD, 0, 0, FIRST_ARGUMENT_AT), (EQUAL, 1, 0, AF_UNIX)]
    steps += [(RETURN, 0, 0, REFUSE | errno.EACCES), (RETURN, 0, 0, ALLOW)]
    steps += [(EQUAL, 0, 4, IOCTL[place]), (LOAD, 0, 0, SECOND_ARGUMENT_AT), (EQUAL, 1, 0, TIOCSTI)]
    steps += [(EQUAL, 0, 1, TIOCLINUX), (RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
