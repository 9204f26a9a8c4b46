"""The command line. Nothing here imports torch until a command runs."""

from flatminima.cli.app import main

__all__ = ["main"]
