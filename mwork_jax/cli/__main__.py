"""`python -m mwork_jax.cli`: the command `mwork`, where no script of that name is installed."""

import sys

from mwork_jax.cli import main

sys.exit(main())
