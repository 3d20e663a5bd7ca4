"""Parts with state: models, indexes, storage. Each library is imported by one file only."""
