"""Where the tests find files that are not beside them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TEST_DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"  # official data sets and the paper's excerpt; tests that use it skip where it is absent
