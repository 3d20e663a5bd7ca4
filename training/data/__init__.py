"""Labelled images for training: where they come from, how classes are split, and what a batch holds.

The names are listed in `__init__.pyi` and imported at first use: splitting a folder needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
