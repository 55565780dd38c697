"""The program's one entry. `health` goes past the command line's imports, which take longer than its answer."""

import sys


def main() -> int:
    if sys.argv[1:2] == ["health"]:
        from gpuhost_exporter import health

        return health.main(sys.argv[2:])
    from gpuhost_exporter import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
