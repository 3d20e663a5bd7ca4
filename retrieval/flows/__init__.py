"""One file, one user story: calibrate, reindex, search, audit. No gRPC, no Celery."""
