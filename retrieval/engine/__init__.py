"""Stateful native parts: models, indexes, storage. Each file hides one library."""
