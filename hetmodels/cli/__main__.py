"""`python -m hetmodels.cli`."""

import sys

from hetmodels.cli import main

sys.exit(main())
