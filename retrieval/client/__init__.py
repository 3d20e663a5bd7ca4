"""The public client: calls of a server, with errors in place of gRPC statuses. Imports grpc and the messages only."""

from retrieval.client.client import Client, connect

__all__ = ["Client", "connect"]
