"""`python -m dermaudit`, the same as the `dermaudit` command."""

import sys

from dermaudit.cli import main

sys.exit(main())
