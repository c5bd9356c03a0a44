"""Python runs this at the start of every command of the tests: a process group open at the end is an error.

gloo's threads go on while the interpreter ends, and abort the process, now and then, if one frees a tensor too late.
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
