"""Complete threshold search: `layout.py` encodes and proves, `lists.py` skips, `kernels.py` searches, `choice.py` tunes."""
