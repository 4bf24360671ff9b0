"""The runs of the golden values can be imported here, as by the script that regenerates them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
