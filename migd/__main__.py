"""`python -m migd` is the daemon."""

import sys

from migd.daemon import main

sys.exit(main())
