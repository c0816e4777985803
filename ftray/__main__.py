"""`python -m ftray` is `ftray`."""

from ftray.cli import main

main()
