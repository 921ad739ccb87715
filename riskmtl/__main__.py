"""``python -m riskmtl`` is the command line."""

import sys

from riskmtl.cli import main

sys.exit(main())
