"""User stories, one per module: calibrate, reindex, search, audit, prune. They import neither gRPC nor Celery."""
