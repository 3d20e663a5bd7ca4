"""`python -m training`, the same as the command `training`."""

from training.cli import main

main()
