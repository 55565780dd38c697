"""The program's one entry. `health` goes past the command line's imports, which take longer than its answer."""

import sys

# Python ends with 1 on an error that nobody expects: of `health` and `verify` that would be a verdict, and a scheduler
# would drain each host that a defect of ours or a broken installation is on. Here these are told and end with 2.
_DEFECTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, NameError,
    OSError, RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in ("health", "verify"):
        return _run(command)
    try:
        return _run(command)
    except _DEFECTS as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if command == "health":
            print(f"unknown: a defect of this command: {said}", flush=True)
        else:
            import traceback

            traceback.print_exc()
        return 2


def _run(command: str) -> int:
    if command == "health":
        from gpuhost_exporter import health

        return health.main(sys.argv[2:])
    from gpuhost_exporter import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
