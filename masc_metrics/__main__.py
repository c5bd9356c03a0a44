"""``python -m masc_metrics`` is the ``masc-metrics`` command."""

import sys

from masc_metrics.cli import main

sys.exit(main())
