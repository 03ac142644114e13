"""``python -m cloudtrain``: the same as the ``cloudtrain`` command."""

from cloudtrain.cli import main

main()
