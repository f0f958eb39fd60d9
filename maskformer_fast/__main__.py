"""python -m maskformer_fast: see cli.py."""

import sys

from maskformer_fast.cli import main

sys.exit(main())
