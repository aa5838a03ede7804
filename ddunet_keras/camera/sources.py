"""Where frames come from: a folder into which they are written, a file that is replaced, a URL."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ddunet_keras.camera.log import Key
from ddunet_keras.camera.records import FROZEN, MISSING
from ddunet_keras.files import (
    MAX_IMAGE_BYTES,
    DataError,
    StrPath,
    UnreadableError,
    check_image_size,
    printable,
)
from ddunet_keras.prediction import SUFFIXES, is_no_frame
from ddunet_keras.sky.reading import RAW_SUFFIXES

SETTLED = 10.0
"""Seconds after which a file that has not changed is no longer being written."""

RELISTED = 300.0
"""Seconds after which a folder is listed again though its time says that nothing has changed."""

URL_TIMEOUT = 5.0
"""Seconds for which an address may be silent."""

URL_DEADLINE = 20.0
"""Seconds that a frame's download may take."""

CHUNK = 65_536
"""Bytes of a download that are read at once."""


class Known(Protocol):
    """Which frames were recorded; the `Log` tells it."""

    def is_known(self, key: Key) -> bool: ...

    def known_of(self, folder: str, names: Iterable[str]) -> set[str]: ...


class Stamp(NamedTuple):
    """What changes when a file is written: its time (ns), size (bytes) and number."""

    changed: int
    size: int
    inode: int


def _stamp(about: os.stat_result) -> Stamp:
    return Stamp(about.st_mtime_ns, about.st_size, about.st_ino)


class Frame(Protocol):
    """A frame that was found.

    Attributes:
        name: path or address, without a password.
        file_name: of its file; "" where there is none.
        changed: when that was last written to, seconds since the epoch; None: unknown.
        key: what the log knows it by.
    """

    key: Key

    @property
    def name(self) -> str: ...

    @property
    def file_name(self) -> str: ...

    @property
    def changed(self) -> float | None: ...

    def read(self) -> bytes:
        """Its content.

        Raises:
            UnreadableError: it is gone, is being written, or cannot be read.
        """

    def look(self, now: float) -> bool:
        """Looks again at a file that was not whole; False if it is gone or was replaced."""

    def is_settled(self, now: float) -> bool:
        """Whether nobody is writing it any more."""


@dataclass(eq=False, slots=True)  # there may be a hundred thousand
class FileFrame:
    """A frame in a file; see `Frame`.

    Args:
        path: of the file.
        key: what the log knows it by.
        stamp: of the file when it was last looked at.
        since: since when it has been this, in seconds that never go back.
        replaced: whether another stamp means another frame.
    """

    path: str
    key: Key
    stamp: Stamp
    since: float
    replaced: bool = False

    @property
    def name(self):
        return self.path

    @property
    def file_name(self):
        return os.path.basename(self.path)

    @property
    def changed(self):
        return self.stamp.changed / 1e9

    def read(self):
        try:
            check_image_size(self.path)
            with open(self.path, "rb") as file:
                before = _stamp(os.fstat(file.fileno()))
                content = file.read(MAX_IMAGE_BYTES)
                after = _stamp(os.fstat(file.fileno()))
        except DataError as error:
            raise UnreadableError(str(error)) from None
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not self.stamp == before == after:
            raise UnreadableError(f"{self.path}: is being written")
        return content

    def look(self, now):
        try:
            stamp = _stamp(os.stat(self.path))
        except OSError:
            return False
        if stamp != self.stamp:
            if self.replaced:
                return False
            self.stamp = stamp
            self.since = now
        return True

    def is_settled(self, now):
        return now - self.since >= SETTLED


@dataclass(eq=False)
class UrlFrame:
    """A frame that was downloaded; see `Frame`."""

    name: str
    key: Key
    content: bytes = field(repr=False)
    file_name: str = ""
    changed: None = None

    def read(self):
        return self.content

    def look(self, now):
        return True

    def is_settled(self, now):
        return True


class Source(Protocol):
    """Where frames come from.

    Attributes:
        name: folder, file or address, without a password.
        silence: why there is no new frame, for a record.
    """

    name: str
    silence: str

    def poll(self) -> Sequence[Frame]:
        """The frames that are new since the last call, in the order in which they were written.

        Raises:
            DataError: the source is away.
        """


class _Listed(NamedTuple):
    """A folder as it was listed.

    Attributes:
        changed: its time, ns.
        since: when it was first seen with this time.
        at: when it was listed.
        folders: in it.
        known: names in it that the log has.
    """

    changed: int
    since: float
    at: float
    folders: list[str]
    known: set[str]


class FolderSource:
    """A folder, nested in any way, into which frames are written under new names; see `Source`.

    A file is one frame, whatever becomes of it later. Folders are listed only when they have
    changed, so that it may hold years. Hidden files, what is no photo by its ending, and what
    `is_no_frame` are left out. Links to folders are not followed.

    Args:
        folder: it may be missing for a time.
        known: the log.
        out: a folder in it that is left out: for the results.
        monotonic: seconds that never go back.
    """

    silence = f"{MISSING}: no new frame"

    def __init__(
        self,
        folder: StrPath,
        known: Known,
        out: StrPath | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = str(folder)
        self._known = known
        self._out = None if out is None else os.path.realpath(out)
        self._monotonic = monotonic
        self._listed: dict[str, _Listed] = {}
        self._found: dict[str, set[str]] = {}  # names that were handed out, and are not yet known

    def poll(self) -> Sequence[Frame]:
        if not os.path.isdir(self.name):
            self._listed.clear()
            self._found.clear()
            raise DataError(f"{self.name}: no such folder")
        frames: list[FileFrame] = []
        before = self._listed
        self._listed = {}
        folders = [self.name]
        while folders:
            folder = folders.pop()
            try:
                listed = self._look_into(folder, before.get(folder), frames)
            except FileNotFoundError:  # it was removed just now
                continue
            except OSError as error:
                if folder == self.name:
                    raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
                continue
            self._listed[folder] = listed
            folders += listed.folders
        for folder in set(self._found) - set(self._listed):
            del self._found[folder]
        return sorted(frames, key=lambda frame: (frame.stamp.changed, frame.path))

    def _look_into(self, folder, before, frames):
        """Adds a folder's new frames, if it has changed."""
        now = self._monotonic()
        changed = os.stat(folder).st_mtime_ns
        if before is None:
            before = _Listed(changed, now, now, [], set())
        elif changed != before.changed:
            before = before._replace(changed=changed, since=now)
        elif now - before.since > SETTLED and now - before.at < RELISTED:
            return before
        # within SETTLED it is listed each time: the time of a folder may be coarse
        place = printable(os.path.abspath(folder))
        folders, new, known = self._list(folder, place, before.known)
        handed_out = self._found.get(folder, set())
        self._found[folder] = set()
        for name, file_name in new.items():
            path = os.path.join(folder, file_name)
            if name not in handed_out:
                try:
                    frames.append(FileFrame(path, (place, name), _stamp(os.stat(path)), now))
                except OSError:  # it was removed just now
                    continue
            self._found[folder].add(name)
        return before._replace(at=now, folders=folders, known=known)

    def _list(self, folder, place, known_before):
        """What is in a folder, which the log knows as `place`.

        Returns:
            its folders; its new frames, by the name that the log is to know them by; and the names
            that the log has.
        """
        folders = []
        new = {}
        known = set()
        others = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in known_before:  # nearly all, so that the rest may take time
                    known.add(entry.name)
                else:
                    others.append(entry)
        recorded = self._known.known_of(place, [printable(entry.name) for entry in others])
        for entry in others:
            if printable(entry.name) in recorded:
                known.add(entry.name)
            elif entry.name.startswith(".") or is_no_frame(entry.name):
                continue
            elif entry.is_dir(follow_symlinks=False):
                if os.path.realpath(entry.path) != self._out:
                    folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                new[printable(entry.name)] = entry.name
        return folders, new, known


class FileSource:
    """A file that is replaced, or written anew, with each frame; see `Source`.

    Args:
        path: it may be missing for a time.
        known: the log.
        monotonic: seconds that never go back.
    """

    silence = f"{MISSING}: no new frame"

    def __init__(
        self, path: StrPath, known: Known, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = str(path)
        self._known = known
        self._monotonic = monotonic
        self._found: Stamp | None = None

    def poll(self) -> Sequence[Frame]:
        try:
            stamp = _stamp(os.stat(self.name))
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror}") from None
        key = (printable(os.path.abspath(self.name)), "-".join(map(str, stamp)))
        if stamp == self._found or self._known.is_known(key):
            return []
        self._found = stamp
        return [FileFrame(self.name, key, stamp, self._monotonic(), replaced=True)]


class UrlSource:
    """An http or https address that gives the newest frame; see `Source`.

    A frame that was there before is not new: the camera may be slower than we ask. `user:password@`
    in the address is sent to its host alone, when that asks for it (basic or digest
    authentication). Neither that nor what follows a `?` is in the name: it may be a password, too.

    Args:
        url: the address.
        known: the log.
        monotonic: seconds that never go back.
    """

    def __init__(
        self, url: str, known: Known, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = shown_url(url)
        self.silence = f"{MISSING}: no new frame"
        self._known = known
        self._monotonic = monotonic
        parts = urllib.parse.urlsplit(url)
        self._address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        self._user = urllib.parse.unquote(parts.username or "")
        self._password = urllib.parse.unquote(parts.password or "")

    def poll(self) -> Sequence[Frame]:
        try:
            content = self._download()
        except DataError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DataError(f"{self.name}: {_url_fault(error)}") from None
        key = (self.name, hashlib.sha256(content).hexdigest())
        if self._known.is_known(key):
            self.silence = FROZEN
            return []
        self.silence = f"{MISSING}: no new frame"
        return [UrlFrame(self.name, key, content)]

    def _download(self):
        deadline = self._monotonic() + URL_DEADLINE
        content = bytearray()
        with self._opener().open(self._address, timeout=URL_TIMEOUT) as answer:
            promised = answer.headers.get("Content-Length", "")
            length = int(promised) if promised.isdecimal() else None
            while len(content) != length:
                chunk = answer.read1(CHUNK)
                content += chunk
                if not chunk:
                    break
                if len(content) > MAX_IMAGE_BYTES:
                    raise DataError(f"{self.name}: gives more than {MAX_IMAGE_BYTES:,} bytes")
                if self._monotonic() > deadline:
                    raise DataError(f"{self.name}: slower than {URL_DEADLINE:.0f} s")
        if length is not None and len(content) < length:
            raise DataError(f"{self.name}: the connection broke off")
        return bytes(content)

    def _opener(self):
        """Opens http and https alone, and logs in where it is asked to."""
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if self._user:
            passwords.add_password(None, self._address, self._user, self._password)
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        return opener


def _url_fault(error):
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code} {printable(error.reason)}"
    reason = getattr(error, "reason", error)  # of an error that wraps another
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return f"no answer ({printable(text)})"


def is_url(text: str) -> bool:
    """Whether a source is an http or https address."""
    return text.lower().startswith(("http://", "https://"))


def shown_url(url: str) -> str:
    """An address as it may be shown: without user, password and what follows a `?`.

    Raises:
        DataError: it is no address of a host. The message does not have it.

    Example:

    >>> shown_url("http://me:secret@camera.local:81/snap.jpg?size=1")
    'http://camera.local:81/snap.jpg'
    """
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        is_address = False
    if not is_address or " " in url:
        raise DataError("the source is no http(s) address, such as http://camera.local/snap.jpg")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def open_source(
    source: str,
    known: Known,
    out: StrPath | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Source:
    """The source that a text names: an address, a file (by its ending, or as it is one), a folder.

    Raises:
        DataError: it is no address of a host, or a camera's raw file.

    Example:

    >>> type(open_source("/var/www/latest.jpg", known=None)).__name__
    'FileSource'
    """
    if is_url(source):
        return UrlSource(source, known, monotonic)
    if source.lower().endswith(RAW_SUFFIXES):
        raise DataError(f"{source}: is a camera's raw file, which is not read")
    is_file = os.path.isfile(source) or source.lower().endswith(SUFFIXES)
    if is_file and not os.path.isdir(source):
        return FileSource(source, known, monotonic)
    return FolderSource(source, known, out, monotonic)
