"""Owner: who has a state folder, so that of two servers on one folder only the newer one is heard.

Used by the state folder. A lock keeps a second server on the same machine away. Where a folder is shared by several
machines, whose locks need not see each other, or where one that was cut off still holds it, the newer server takes it
over: it writes down that it is the owner, and only then reads what is there. The older one looks who the owner is after
each sync, before anything is told to be on the disk. So what it told was synced before it was taken over, and was read.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from plr_client.errors import StateDirTaken
from plr_server.durability import files


class Owner:
    """This process, as the owner of a folder.

    Args:
        folder: it.
        take_over: even where another server has it.

    Raises:
        StateDirTaken: another server has it.
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path, *, take_over: bool) -> None:
        self._folder = folder
        self._name = f"process {os.getpid()} on {socket.gethostname()} (start {secrets.token_hex(8)})"
        self._lock = files.lock(folder, self._name, take_over=take_over)

    def check(self) -> None:
        """Looks whether the folder is still this process's.

        Raises:
            StateDirTaken: another server has taken it over.
            OSError: nobody can tell.
        """
        owner = files.owner_of(self._folder)
        if owner != self._name:
            raise StateDirTaken(f"{self._folder}", f"{owner}, which has taken it over")

    def leave(self) -> None:
        """Lets others have the folder."""
        files.close(self._lock)
