"""`python -m hvcore` is the command line."""

from hvcore.cli import main

raise SystemExit(main())
