"""``python -m tunnelsync`` is the same as the ``tunnelsync`` command."""

from tunnelsync.cli import main

main()
