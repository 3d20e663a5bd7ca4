"""The vector index: `index.py` states what an index is, `spec.py` how one is declared, `open.py` makes and opens one."""
