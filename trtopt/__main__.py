"""`python -m trtopt`."""

from trtopt.cli.app import main

main()
