"""Writing a simulated tree: every file appears whole, and only when its text has changed. Its modification time is
the moment that it tells of, on the simulation's clock: who divides by time reads both at once, however late it is.

The folder belongs on a tmpfs: disk file systems flush a file that replaces another one, a hundred times a second here.
"""

from __future__ import annotations

import contextlib
import os
import shutil


class Files:
    def __init__(self, folder: str) -> None:
        self.at = 0.0  # the moment that the next files tell of
        self._folder = folder
        self._texts: dict[str, str] = {}
        os.makedirs(folder, exist_ok=True)
        # Not beside the file: who lists a folder must not see it.
        self._temporary = f"{folder}/.new"

    def path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def put(self, name: str, text: str) -> None:
        """Write a file, with a newline at its end."""
        known = self._texts.get(name)
        if known == text:
            return
        if known is None:
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        whole = text if text.endswith("\n") else f"{text}\n"
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, whole.encode())
            moment = int(self.at * 1e9)
            os.utime(descriptor, ns=(moment, moment))
        finally:
            os.close(descriptor)
        os.replace(self._temporary, self.path(name))
        self._texts[name] = text

    def put_block(self, name: str, block: bytes) -> None:
        """Write a file in place, so that who holds it open reads what it says now."""
        descriptor = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, block, 0)
            os.ftruncate(descriptor, len(block))
        finally:
            os.close(descriptor)

    def put_all(self, folder: str, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            self.put(f"{folder}/{name}", text)

    def link(self, name: str, target: str) -> None:
        """A relative link; both names are below the folder. The target need not exist."""
        where = self.path(name)
        os.makedirs(os.path.dirname(where), exist_ok=True)
        relative = os.path.relpath(target, os.path.dirname(name))
        with contextlib.suppress(FileExistsError):
            os.symlink(relative, where)

    def show_link(self, name: str, target: str) -> None:
        """A link that only says where it leads, as those of /proc/PID/fd do."""
        if self._texts.get(name) != target:
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.symlink(target, self.path(name))
            self._texts[name] = target

    def remove(self, name: str) -> None:
        """Remove a file, a link or a folder with all that is in it, if it is there."""
        where = self.path(name)
        if os.path.islink(where) or os.path.isfile(where):
            os.unlink(where)
        else:
            shutil.rmtree(where, ignore_errors=True)
        for known in [text for text in self._texts if text.startswith(f"{name}/")]:
            del self._texts[known]
