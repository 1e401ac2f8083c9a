"""`python -m scalai_nb` is `scalai`."""

from scalai_nb.cli import main

main()
