"""User stories, one per file: calibrate, reindex, search, audit. They import neither gRPC nor Celery."""
