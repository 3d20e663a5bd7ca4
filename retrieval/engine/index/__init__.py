"""The vector index: `index.py` states what an index does, `spec.py` declares one, `open.py` builds or opens one."""
