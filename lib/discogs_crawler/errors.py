"""What can go wrong, named after what the user can do about it.

Raise one of these where the cause is known, with a message that is one line, names the file,
byte, line or setting, and says what to do. `command.run` prints it and turns it into the exit
code; nothing else does.
"""

EXIT_DONE = 0
EXIT_PARTLY = 1
EXIT_USAGE = 64
EXIT_BAD_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_TRY_LATER = 75
EXIT_CONFIGURATION = 78


class CrawlerError(Exception):
    """Base of all expected failures: one line for the user and an exit code."""

    exit_code = EXIT_BUG


class PartlyDone(CrawlerError):
    """Some of the work was done and kept: run again."""

    exit_code = EXIT_PARTLY


class UsageError(CrawlerError):
    """The command line makes no sense."""

    exit_code = EXIT_USAGE


class BadData(CrawlerError):
    """Input that is damaged, or not what it should be."""

    exit_code = EXIT_BAD_DATA


class Unavailable(CrawlerError):
    """A service or a resource (Redis, the API, the disk) is not there or gave up."""

    exit_code = EXIT_UNAVAILABLE


class TryLater(CrawlerError):
    """Already running elsewhere, or not yet there."""

    exit_code = EXIT_TRY_LATER


class NothingYet(TryLater):
    """A fresh installation has no such thing yet: told to a terminal, but no news for cron."""


class ConfigurationError(CrawlerError):
    """A setting, a permission or an installed program is wrong."""

    exit_code = EXIT_CONFIGURATION
