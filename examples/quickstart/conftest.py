"""Lets the tests here import the quickstart's scripts by their names, as the scripts import one another."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
