"""What both ends of the curriculum server speak, and its two clients: `LevelClient` and `Trainer`.

Imports numpy, zmq and msgpack, and nothing else beyond the standard library: a worker that wants a seed pays no more.
"""

from plr_client.errors import (
    AddressTaken,
    ConfigError,
    InvalidInput,
    LevelOutsideSpace,
    MessageTooLarge,
    MissingDependency,
    MissingField,
    NoLevels,
    PickleRefused,
    PlrError,
    ProtocolError,
    RepliesUnread,
    ScoreFunctionError,
    ServerError,
    ServerStartError,
    ServerUnreachable,
    SessionExpired,
    StepsDropped,
    TooManyOpenFiles,
    TooManySessions,
    UnknownCurriculum,
    UnknownOperation,
    VersionMismatch,
)
from plr_client.levels import Assignment, Assignments, Level, LevelClient
from plr_client.segment import Segment
from plr_client.trainer import Trainer

__all__ = [
    "AddressTaken",
    "Assignment",
    "Assignments",
    "ConfigError",
    "InvalidInput",
    "Level",
    "LevelClient",
    "LevelOutsideSpace",
    "MessageTooLarge",
    "MissingDependency",
    "MissingField",
    "NoLevels",
    "PickleRefused",
    "PlrError",
    "ProtocolError",
    "RepliesUnread",
    "ScoreFunctionError",
    "Segment",
    "ServerError",
    "ServerStartError",
    "ServerUnreachable",
    "SessionExpired",
    "StepsDropped",
    "TooManyOpenFiles",
    "TooManySessions",
    "Trainer",
    "UnknownCurriculum",
    "UnknownOperation",
    "VersionMismatch",
]
