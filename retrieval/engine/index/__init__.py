"""The vector index: `index.py` is its interface, `spec.py` parses its declaration, `open.py` builds or opens it."""
