"""Jobs: their records in Redis, the queue, the worker, and the embedded Valkey."""
