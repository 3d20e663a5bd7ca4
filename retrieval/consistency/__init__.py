"""The mathematics of thresholds: labelled vectors in, values with their uncertainty out.

Arrays only: no files, no clock, no environment; randomness is an argument. The public names stand in `__init__.pyi` and
are imported when they are first used, so that importing the package costs next to nothing.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
