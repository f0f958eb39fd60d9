"""What must happen before any test module is imported."""

import sys

try:
    import torchvision  # noqa: F401
except Exception:  # absent, or built for another torch: transformers must not try it either
    sys.modules["torchvision"] = None  # type: ignore[assignment]
