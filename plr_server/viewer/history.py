"""The past of one curriculum: a ring of samples that halves its resolution when it is full.

Used by collect. Pure: it is told when a sample was taken, and reads no clock and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CAPACITY = 240  # samples: as many columns as a chart of a page can show


class History:
    """Samples in the order in which they came, at most `CAPACITY` of them, from the first to the newest.

    When it is full every second one goes, and from then on every second one that comes is kept. The counts in a sample
    are totals so far, so that rates between the samples that stay are exact. The newest sample is always the last one.

    Attributes:
        samples: what is kept; every one a mapping of the same names.
        stride: one of so many samples stays.
    """

    def __init__(self) -> None:
        self.samples: list[Mapping[str, Any]] = []
        self.stride = 1
        self._added = 0

    def add(self, sample: Mapping[str, Any]) -> None:
        """Adds the newest sample, in the place of the last one where that one does not stay."""
        if self.samples and (self._added - 1) % self.stride:
            self.samples[-1] = sample
        else:
            self.samples.append(sample)
        self._added += 1
        if len(self.samples) > CAPACITY:
            self.samples = self.samples[::2]
            self.stride *= 2
            if self.samples[-1] is not sample:
                self.samples.append(sample)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values: stride, added, and columns, name -> values of all samples."""
        names = self.samples[-1] if self.samples else ()
        columns = {name: [sample.get(name) for sample in self.samples] for name in names}
        return {"stride": self.stride, "added": self._added, "columns": columns}

    def newest(self) -> dict[str, Any]:
        """Returns how a page brings what it has up to date: stride, length, and newest, the last sample (or None)."""
        newest = self.samples[-1] if self.samples else None
        return {"stride": self.stride, "length": len(self.samples), "newest": newest}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> History:
        """Returns the history that `to_dict` gave."""
        history = cls()
        columns = saved["columns"]
        history.samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        history.stride, history._added = saved["stride"], saved["added"]
        return history
