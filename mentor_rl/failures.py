"""Which exceptions are the user's to mend, and the one line that says so. Everything else is a bug: a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted

NO_SPACE = "no space left on the disk"
FULL_DISK_MESSAGES = (
    "No space left on device",  # the C library, also inside safetensors' and pyarrow's errors
    "PytorchStreamWriter failed writing",  # torch.save hides the errno: this, or
    "] . unexpected pos ",  # this, when its end cannot be written either
)


def failure_line(error: BaseException) -> str | None:
    """The line for the user; None when the exception is a bug of ours."""
    from mentor_rewards.contract import RewardError

    full = next((each for each in _chain(error) if _is_full_disk(each)), None)
    if full is not None:
        file = getattr(full, "filename", None)
        return f"{file or 'run folder'}: {NO_SPACE}; free some, then run the same command to go on"
    if isinstance(error, (UserError, RewardError, Interrupted)):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return None


def exit_code(error: BaseException) -> int:
    """130 for a run that stopped on request, as a shell has it for Ctrl-C; 2 for every other fault."""
    return 130 if isinstance(error, Interrupted) else 2


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(message in str(error) for message in FULL_DISK_MESSAGES)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
