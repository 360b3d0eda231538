"""verifix: correct a trained classifier that learned from wrong labels, from a small verified set."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the public names stand in __init__.pyi
