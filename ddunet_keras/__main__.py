"""`python -m ddunet_keras`: the same as the command `ddunet`."""

import sys

from ddunet_keras.cli import main

sys.exit(main())
