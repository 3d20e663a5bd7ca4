"""The command `retrieval`: parses, calls a flow or the server, prints."""

from retrieval.edge.cli.app import main

__all__ = ["main"]
