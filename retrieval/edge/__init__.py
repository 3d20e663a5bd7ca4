"""Translation only: settings, wiring, gRPC, Celery, command line, reports."""
