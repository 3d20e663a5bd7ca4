"""The gRPC server: one servicer per file over the flows."""
