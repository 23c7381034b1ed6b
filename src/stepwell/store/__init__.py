"""The store: run folders that are readable without Stepwell, and that a run killed at any moment can go on with."""

from __future__ import annotations

from stepwell.stage import read_records
from stepwell.store.checkpoints import load_checkpoint, save_checkpoint
from stepwell.store.environment import cpu_count, environment, git_state
from stepwell.store.events import append_event, read_events
from stepwell.store.files import (
    is_disk_full,
    make_writable,
    need_space,
    readable,
    replacing,
    sha256_of,
    write_atomically,
)
from stepwell.store.folder import RunFolder
from stepwell.store.job import JobStore
from stepwell.store.locks import Lock, is_held
from stepwell.store.policy import differences, freeze, override_of
from stepwell.store.records import RecordWriter

__all__ = [
    "JobStore",
    "Lock",
    "RecordWriter",
    "RunFolder",
    "append_event",
    "cpu_count",
    "differences",
    "environment",
    "freeze",
    "git_state",
    "is_disk_full",
    "is_held",
    "load_checkpoint",
    "make_writable",
    "need_space",
    "override_of",
    "read_events",
    "read_records",
    "readable",
    "replacing",
    "save_checkpoint",
    "sha256_of",
    "write_atomically",
]
