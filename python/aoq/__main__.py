"""`python -m aoq`: the version, what the kernels run on, and why not CUDA; with arguments, the command line."""

import sys

from aoq.cli import main

main(sys.argv[1:] or ["info"])
