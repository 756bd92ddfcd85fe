"""What can go wrong with a test cluster.

ClusterError
  Unavailable   this machine cannot run it; the text says what is missing
  TimedOut      something was waited for until its deadline; the text says what
"""


class ClusterError(Exception):
    """Something about the test cluster failed; never a failure of what is under test."""


class Unavailable(ClusterError):
    """This machine cannot run the cluster, and the reason names what it lacks."""

    def __init__(self, reason: str) -> None:
        """Keep the reason for whoever skips or fails because of it."""
        super().__init__(reason)
        self.reason = reason


class TimedOut(ClusterError):
    """A deadline passed; the text says what was waited for."""
