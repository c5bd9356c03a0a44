"""Python runs this module at the start of each command; a process group that is open at exit is an error.

gloo's threads continue while the interpreter exits, and may abort the process when they free a tensor.
"""

import atexit
import os
import sys


@atexit.register  # the first to be registered is the last to run
def _no_group_is_open() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        print("a process group is open at the end of this process", file=sys.stderr, flush=True)
        os._exit(9)
