"""What a program in the sandbox may use."""

from __future__ import annotations

from pydantic import Field

from stepwell.spec import Spec

MIB = 1 << 20


class Limits(Spec):
    """The most that one program may use; they hold for root too.

    Attributes:
        seconds: wall-clock time of a program with its tests, from the moment at which both could begin.
        memory_mib: what any of its processes may map, and what all of them together may hold.
        processes: processes and threads at a time.
        open_files: file descriptors of each process.
        disk_mib: its private /tmp, which lies in memory; also the largest file.
        files: files and folders in /tmp.
        output_kib: what it may print, and, as a multiple of 16 of it, what one value that it returns may take.
    """

    seconds: float = Field(default=10.0, gt=0)
    memory_mib: int = Field(default=512, ge=64)
    processes: int = Field(default=16, ge=1)
    open_files: int = Field(default=64, ge=16)
    disk_mib: int = Field(default=16, ge=1)
    files: int = Field(default=1000, ge=16)
    output_kib: int = Field(default=256, ge=1)

    @property
    def memory_bytes(self) -> int:
        """`memory_mib` in bytes."""
        return self.memory_mib * MIB

    @property
    def disk_bytes(self) -> int:
        """`disk_mib` in bytes."""
        return self.disk_mib * MIB

    @property
    def output_bytes(self) -> int:
        """`output_kib` in bytes."""
        return self.output_kib * 1024

    @property
    def frame_bytes(self) -> int:
        """The most that one value may take on its way between program and tests."""
        return 16 * self.output_bytes
