"""hyperrbp: the gradient of a whole training run, what it costs, and a tuner that follows it.

The public names and their modules stand in ``__init__.pyi``, for type checkers and for
``lazy_loader`` alike: importing this package imports no numerics until one is used.
"""

from lazy_loader import attach_stub

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]
