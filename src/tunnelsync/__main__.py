"""``python -m tunnelsync`` is the same as the ``tunnelsync`` command."""

import signal


def run() -> None:
    """Run the command line; Ctrl-C is no traceback while it is imported, nor at its end."""
    try:
        from tunnelsync.cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
