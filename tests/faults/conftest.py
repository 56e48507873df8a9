"""What the tests of faults share with those of whole runs and of installed plugins."""

from core.tests.conftest import installation
from tests.runs.conftest import pictures, train, twin

__all__ = ["installation", "pictures", "train", "twin"]
