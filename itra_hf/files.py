"""Files that a crash leaves whole or not at all, and files that are named where they cannot be read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_anew(path: Path, content: str | bytes) -> None:
    """Write a file in the place of what is there, as a whole; a link is replaced, not followed."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    flush(part)
    part.replace(path)


def flush(path: Path) -> None:
    """Have the system write a file to the disk, or all files of a folder, before anything says that they are there."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and os.access(file, os.W_OK):  # else it is not from here
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


class UnreadableError(ValueError):
    """Something that cannot be read, with its name."""


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Name what is read in whatever its reader raises, but for an error of the system, which names it.

    Raises:
        UnreadableError: in place of the error, which is its cause.
    """
    try:
        yield
    except (OSError, UnreadableError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        why = str(cause) if isinstance(cause, ValueError) else f"{type(cause).__name__}: {cause}"
        if isinstance(cause, UnicodeDecodeError):
            why = "it is no text in utf-8"
        raise UnreadableError(f"cannot read {what}: {why}; fix it, or use another") from error
