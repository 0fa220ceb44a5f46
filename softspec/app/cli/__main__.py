"""`python -m softspec.app.cli`, for launchers that want a module."""

import sys

from softspec.app.cli.main import main

sys.exit(main())
