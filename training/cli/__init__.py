"""The command line of training: parses, calls, prints."""

from training.cli.app import main

__all__ = ["main"]
