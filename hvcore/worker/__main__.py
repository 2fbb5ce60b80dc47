"""`python -m hvcore.worker FD`, started by the host."""

import sys

from hvcore.worker.main import main

main(int(sys.argv[1]))
