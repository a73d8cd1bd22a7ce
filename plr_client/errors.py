"""Every exception of the project, one tree, importable from `plr_client`.

    PlrError
    ├── InvalidInput (ValueError)        an argument or a pushed array is not what it must be
    │   ├── MissingField                 a field that the configured strategy needs was not given
    │   └── LevelOutsideSpace            a level id the curriculum does not have
    ├── UnknownCurriculum                a curriculum the server does not have
    ├── ConfigError (ValueError)         a configuration field is not what it must be
    ├── NoLevels                         there is no level to hand out
    ├── ServerUnreachable                no reply within the timeout
    ├── ProtocolError                    bytes that are not a message of this protocol
    │   ├── VersionMismatch              the two ends speak different protocol versions
    │   ├── UnknownOperation             an operation the server does not have
    │   └── MessageTooLarge              more bytes or frames than the server takes
    ├── SessionExpired               a request in a session that the server has forgotten
    ├── NotAdmitted                  the client's keys are not those that the server asks for
    ├── NotAllowed                   an operation that the client's key has no right to
    ├── OutOfStep                    a request before a hello, or without the one before it
    ├── StateRolledBack              what was on the server's disk is not there any more
    ├── TooManySessions              the server takes no more clients
    ├── RepliesUnread                a client that asks for more than it reads
    ├── TooManyOpenFiles             this process can open no more connections
    ├── ServerError                      the server failed at a valid request (its log has the traceback)
    ├── StepsDropped                     steps pushed one by one made a block that cannot be scored
    ├── ScoreFunctionError               a score function of yours raised, or returned what is no score
    ├── PickleRefused                    a pickled function for a server that takes none
    ├── ServerStartError                 the server could not start
    │   ├── AddressTaken                 something already listens there
    │   ├── StateDirTaken                another server has the state directory
    │   ├── StateDamaged                 the state directory lacks what was in it
    │   └── StateDiverged                the commands in the state directory lead to another state here
    ├── StateNotWritten                  the server could not write what was asked for down, and did not do it
    └── MissingDependency (ImportError)  an optional package is not installed

An error holds its values as attributes, named in `fields`, and goes over the wire as `code` and `fields`; the client
rebuilds the same class from them. May be imported by everything; imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator
from typing import Any, ClassVar


def counted(number: int, noun: str) -> str:
    """Returns how many of something there are, in words that agree.

    >>> counted(1, "client"), counted(2, "client")
    ('1 client', '2 clients')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Formatter(string.Formatter):
    """Formats `{field:# noun}` by `counted`, and all else as ever."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec.startswith("# "):
            return counted(value, format_spec[2:])
        return str(super().format_field(value, format_spec))


_formatter = _Formatter()


class PlrError(Exception):
    """Root of every error of the project.

    Built from the values of `fields`, in their order. `template` makes its text of them; `{field:# noun}` there is a
    number with what it counts. Also built from one other `PlrError`, whose values it takes over:
    that is how `gymnasium.vector.AsyncVectorEnv` re-raises what a worker raised.
    """

    code: ClassVar[str] = "error"
    fields: ClassVar[tuple[str, ...]] = ("reason",)
    template: ClassVar[str] = "{reason}"

    reason: str

    def __init__(self, *values: Any) -> None:
        if len(values) == 1 and isinstance(values[0], PlrError):
            values = values[0].args
        if len(values) != len(self.fields):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.fields)}, got {len(values)} values")
        super().__init__(*values)
        for name, value in zip(self.fields, values, strict=True):
            setattr(self, name, value)

    def __str__(self) -> str:
        return _formatter.vformat(self.template, (), dict(zip(self.fields, self.args, strict=True)))

    def to_wire(self) -> list[Any]:
        """Returns `[code, fields]`, values that msgpack and JSON can carry, whatever the error holds."""
        return [self.code, [value if isinstance(value, int | float) else _encodable(str(value)) for value in self.args]]


class InvalidInput(PlrError, ValueError):
    """An argument or an array is not what it must be; nothing of the request was applied.

    Attributes:
        field: the name of the argument, array or column.
        expected: what it must be, and where it helps the way out.
        got: what it was.
    """

    code = "invalid_input"
    fields = ("field", "expected", "got")
    template = "{field}: expected {expected}, got {got}"

    field: str
    expected: str
    got: str


class MissingField(InvalidInput):
    """A field that the configured strategy or another argument needs was not given."""

    code = "missing_field"


class LevelOutsideSpace(InvalidInput):
    """A level id that is not in the curriculum's level space."""

    code = "level_outside_space"


class UnknownCurriculum(PlrError):
    """The server has no curriculum of that name.

    Attributes:
        name: the one asked for.
        known: those it has.
    """

    code = "unknown_curriculum"
    fields = ("name", "known")
    template = "curriculum: expected one of {known} (curriculum=NAME, or --curriculum NAME), got {name!r}"

    name: str
    known: str


class ConfigError(PlrError, ValueError):
    """A field of the configuration is not what it must be. Attributes as `InvalidInput`."""

    code = "config"
    fields = ("field", "expected", "got")
    template = "{field}: expected {expected}, got {got}"

    field: str
    expected: str
    got: str


class NoLevels(PlrError):
    """There is no level to hand out: the curriculum is one of payloads, and holds none yet."""

    code = "no_levels"
    fields = ()
    template = "levels: expected some to hand out, got none inserted yet; insert payloads first (Trainer.insert)"


class ServerUnreachable(PlrError):
    """No reply came within the timeout.

    Attributes:
        address: where the request was sent.
        attempts: how often it was sent.
        waited_s: seconds waited in all.
        hint: the likely cause and the way out.
    """

    code = "server_unreachable"
    fields = ("address", "attempts", "waited_s", "hint")
    template = "expected a reply from {address}, got none in {waited_s:.1f} s and {attempts:# attempt}; {hint}"

    address: str
    attempts: int
    waited_s: float
    hint: str


class ProtocolError(PlrError):
    """Bytes that are not a message of this protocol."""

    code = "protocol"


class VersionMismatch(ProtocolError):
    """The two ends speak different protocol versions; upgrade the older one."""

    code = "version_mismatch"
    fields = ("expected", "got")
    template = "protocol version: expected {expected} (the server's), got {got}; install the same release at both ends"

    expected: int
    got: int


class UnknownOperation(ProtocolError):
    """An operation that the server does not have."""

    code = "unknown_operation"
    fields = ("op", "known")
    template = "op: expected one of {known}, got {op!r}"

    op: str
    known: str


class MessageTooLarge(ProtocolError):
    """A message with more bytes or frames than the server takes."""

    code = "message_too_large"
    fields = ("field", "limit", "got")
    template = (
        "{field}: expected at most {limit}, got {got}; push smaller blocks or raise the server's --max-frame-bytes"
    )

    field: str
    limit: int
    got: int


class SessionExpired(PlrError):
    """The server does not know the session of a request, which only a hello begins, and has not applied the request.

    It forgets a client that said goodbye, or was gone for long. A client of this project says hello anew by itself
    where nothing can be applied twice; where that is not known, this reaches the caller.

    Attributes:
        op: what was asked for.
        outcome: what is known of the request.
    """

    code = "session_expired"
    fields = ("op", "outcome")
    template = "session: expected one that the server knows, got one it has forgotten; {op}: {outcome}"

    op: str
    outcome: str


class NotAdmitted(PlrError):
    """The client's keys are not those that the server asks for: there is no connection, or no longer.

    Attributes:
        expected: what the server asks for, and the way out.
        got: what the client has.
    """

    code = "not_admitted"
    fields = ("expected", "got")
    template = "keys: expected {expected}, got {got}"

    expected: str
    got: str


class NotAllowed(PlrError):
    """An operation that the client's key has no right to; nothing was applied.

    Attributes:
        op: what was asked for.
        expected: whose it is.
        got: the name of the client's key, and its role.
    """

    code = "not_allowed"
    fields = ("op", "expected", "got")
    template = (
        "{op}: expected {expected}, got {got}; who runs the server makes keys (plr-server keygen DIR --role ROLE "
        "--name NAME)"
    )

    op: str
    expected: str
    got: str


class OutOfStep(PlrError):
    """A request that the server cannot take in its turn, and has not applied.

    A client of this project does by itself what is needed then: it says hello on a fresh connection, and sends what is
    missing.

    Attributes:
        op: what was asked for.
        expected: what has to come first.
        got: what came.
    """

    code = "out_of_step"
    fields = ("op", "expected", "got")
    template = "{op}: expected {expected}, got {got}; it was not applied"

    op: str
    expected: str
    got: str


class StateRolledBack(PlrError):
    """The server's state lacks commands that were on its disk when it said so: this client's may be among them.

    Attributes:
        durable: how many commands were on the disk.
        survived: how many of them the state has seen; -1 where it cannot tell, for it is from before that run of the
            server.
    """

    code = "state_rolled_back"
    fields = ("durable", "survived")
    template = (
        "state: expected the {durable:# command} that were on the server's disk, got {got}: its state directory was "
        "rolled back (a backup was put in its place, or the machine stopped under --fsync never). To go on from that "
        "older state, close() this client, and use it again or make a new one"
    )

    durable: int
    survived: int

    def __str__(self) -> str:
        got = f"{self.survived} of them" if self.survived >= 0 else "a state from before that run of the server"
        return _formatter.vformat(self.template, (), {"durable": self.durable, "got": got})


class TooManySessions(PlrError):
    """The server takes no more clients.

    Attributes:
        scope: what the limit is of.
        limit: how many there may be.
    """

    code = "too_many_sessions"
    fields = ("scope", "limit")
    template = "sessions: expected at most {limit} {scope}, got one more; close clients that are done"

    scope: str
    limit: int


class RepliesUnread(PlrError):
    """The client has not read so much of what it asked for that this reply was dropped; the request was applied.

    Attributes:
        scope: whose unread replies the limit is of.
        limit: bytes that may wait.
    """

    code = "replies_unread"
    fields = ("scope", "limit")
    template = "replies: expected at most {limit} bytes unread {scope}, got more; read a reply before you ask again"

    scope: str
    limit: int


class TooManyOpenFiles(PlrError):
    """This process may not open the files that one more connection needs.

    Attributes:
        limit: how many files it may have open, its hard limit.
    """

    code = "too_many_open_files"
    fields = ("limit",)
    template = (
        "open files: expected room for one more connection below the limit of {limit}, got none; raise ulimit -Hn"
    )

    limit: int


class ServerError(PlrError):
    """The server failed at a valid request and went on serving; its log has the traceback."""

    code = "server_error"


class StepsDropped(PlrError):
    """Steps pushed one by one made a block that cannot be scored; they are dropped, and the next begins a new block.

    Attributes:
        steps: how many there were of each env column.
        reason: why it cannot be scored.
    """

    code = "steps_dropped"
    fields = ("steps", "reason")
    template = (
        "push_step: expected {steps:# step} that can be scored as one block, got: {reason}; they are dropped, the next "
        "step begins a new block"
    )

    steps: int
    reason: str


class ScoreFunctionError(PlrError):
    """A score function raised, or returned something else than a mean and a maximum; nothing was applied.

    Attributes:
        function: its name, `module:function`.
        reason: what went wrong; the server's log has the traceback.
    """

    code = "score_function"
    fields = ("function", "reason")
    template = "score function {function}: expected (mean, max), two finite floats, got {reason}"

    function: str
    reason: str


class PickleRefused(PlrError):
    """A pickled function was sent to a server that takes none: unpickling runs code of the sender's choice.

    Attributes:
        op: what was asked for.
    """

    code = "pickle_refused"
    fields = ("op",)
    template = (
        "{op}: expected a server that takes pickled functions, got one that does not; its operator allows it with "
        "plr-server serve --allow-pickle or launch(..., allow_pickle=True), or configures strategy = 'module:function'"
    )

    op: str


class ServerStartError(PlrError):
    """The server could not start."""

    code = "server_start"


class AddressTaken(ServerStartError):
    """Something already listens at the address."""

    code = "address_taken"
    fields = ("address", "owner")
    template = "address: expected a free one, got {address}, taken by {owner}; stop it or choose another --bind"

    address: str
    owner: str


class StateDirTaken(ServerStartError):
    """Another server has the state directory.

    Attributes:
        path: the directory.
        owner: who has it.
    """

    code = "state_dir_taken"
    fields = ("path", "owner")
    template = "state_dir: expected one that no server uses, got {path}, used by {owner}; stop it or choose another"

    path: str
    owner: str


class StateDamaged(ServerStartError):
    """A state directory lacks what was in it, in a way that no crash explains; nothing was changed.

    Attributes:
        file: which file.
        record: where in it.
        reason: what is wrong there.
        at_stake: which commands are lost if the server goes on without, such as "at least 2 commands".
    """

    code = "state_damaged"
    fields = ("file", "record", "reason", "at_stake")
    template = (
        "{file}: expected {record} as it was written, got damage: {reason}. At stake: {at_stake}. Restore the "
        "file from a copy; or give them up with plr-server serve --accept-loss, which keeps what is there as .broken"
    )

    file: str
    record: str
    reason: str
    at_stake: str


class StateDiverged(ServerStartError):
    """The same commands lead to another state here than where they were first applied; nothing was changed.

    Attributes:
        command: the state was still the same up to the digest before this command, and differs after it.
        there: what decided bits where it ran before: numpy's version and the CPU features.
        here: the same of this process.
    """

    code = "state_diverged"
    fields = ("command", "there", "here")
    template = (
        "state_dir: expected the state that was there after command {command}, got another one from the same commands. "
        "They ran with {there}; here is {here}. Start the server there, or accept the state of here with plr-server "
        "serve --accept-loss"
    )

    command: int
    there: str
    here: str


class StateNotWritten(PlrError):
    """The server could not write a command to its state directory, and did not apply it.

    Attributes:
        op: what was asked for.
        reason: why it could not be written.
    """

    code = "state_not_written"
    fields = ("op", "reason")
    template = (
        "{op}: expected a server that can write to its state directory, got: {reason}; nothing was applied, send it "
        "again once it can"
    )

    op: str
    reason: str


class MissingDependency(PlrError, ImportError):
    """An optional package is not installed."""

    code = "missing_dependency"
    fields = ("package", "extra")
    template = "expected package {package}, which is not installed; pip install 'plr-server[{extra}]'"

    package: str
    extra: str


@contextlib.contextmanager
def needed(package: str, extra: str, *modules: str) -> Iterator[None]:
    """Turns into a MissingDependency what imports within it raise where the package is not installed.

    Args:
        package: what pip calls it.
        extra: the extra that installs it.
        modules: what Python calls it; by default as pip does. That another module is missing is not its fault.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in (modules or (package,)):
            raise
        raise MissingDependency(package, extra) from error


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # a lone surrogate cannot be packed


def _tree(root: type[PlrError]) -> dict[str, type[PlrError]]:
    classes = {root.code: root}
    for child in root.__subclasses__():
        classes |= _tree(child)
    return classes


_BY_CODE = _tree(PlrError)


def from_wire(code: str, fields: list[Any]) -> PlrError:
    """Rebuilds the error the other end raised.

    Args:
        code: the class's stable `code`.
        fields: the values of its `fields`, in order.

    Returns:
        The exception, of the class with that code; a `ServerError` with the same text where this end has no such class.
    """
    known = _BY_CODE.get(code)
    if known is not None and len(fields) == len(known.fields):
        return known(*fields)
    return ServerError(f"{code}: {', '.join(map(str, fields))}")
