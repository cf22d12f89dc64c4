"""`python -m diffem COMMAND`."""

from diffem.cli.main import main

main()
