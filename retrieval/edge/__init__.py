"""The edge translates between the flows and the outside: settings, gRPC, Celery, command line."""
