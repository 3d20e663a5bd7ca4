"""The public client: calls a server and raises `retrieval.errors`. Imports only gRPC and the messages."""

from retrieval.client.client import Client, connect

__all__ = ["Client", "connect"]
