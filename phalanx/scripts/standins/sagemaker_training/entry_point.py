"""Hosts of a job on one machine find each other at once."""


def _wait_hostname_resolution() -> None:
    """Return: hosts have addresses as names."""
