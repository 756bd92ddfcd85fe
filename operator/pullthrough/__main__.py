"""`python -m pullthrough` is the command `pullthrough`."""

import sys

from pullthrough.cli import main

sys.exit(main())
