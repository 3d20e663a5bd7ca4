"""Complete threshold search: `layout.py` encodes, `lists.py` skips, `kernels.py` searches, `choice.py` tunes.

docs/exact-search.md explains the whole.
"""
