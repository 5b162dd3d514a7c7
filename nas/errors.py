"""The errors a person at the command line sees, one class per exit status."""


class UsageError(ValueError):
    """What was asked for cannot be done as asked (unknown name, bad file, bad option)."""

    exit_status = 2


class NasError(RuntimeError):
    """Something that should have worked failed (disk full, damaged file, busy study)."""

    exit_status = 1


class NothingFeasible(RuntimeError):
    """The search ended without one candidate that meets the constraints."""

    exit_status = 3


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a line that says what is saved and how to go on."""

    exit_status = 130
