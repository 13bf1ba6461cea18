"""`python -m service` is the `bar` command."""

import sys

from service.cli import main

sys.exit(main())
