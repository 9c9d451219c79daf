"""A kill at one chosen change to the file system, as one process can play it."""

import io
import itertools
import os
from collections.abc import Callable


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors catches it."""


def is_killed(monkeypatch, number: int, action: Callable[[], object]) -> bool:
    """Run an action that dies at its `number`-th change to the file system; False if it ends.

    A file that is opened for writing at that moment stays empty. Nothing changes after it.
    """
    changes = itertools.count(1)

    def dies(real):
        def change(*args, **options):
            if next(changes) >= number:
                raise Killed
            return real(*args, **options)

        return change

    def dying_open(file, mode="r", *args, **options):
        opened = real_open(file, mode, *args, **options)
        if "r" not in mode and next(changes) >= number:
            opened.close()
            raise Killed
        return opened

    real_open = io.open
    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
            patch.setattr(os, name, dies(getattr(os, name)))
        patch.setattr(io, "open", dying_open)
        try:
            action()
        except Killed:
            return True
    return False
