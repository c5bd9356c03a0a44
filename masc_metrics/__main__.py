"""Run the ``masc-metrics`` command by ``python -m masc_metrics``."""

import sys

from masc_metrics.cli import main

sys.exit(main())
