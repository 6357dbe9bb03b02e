"""`python -m phalanx.cli` is `phalanx`."""

from . import main

main()
