import sys

from gpuhost_exporter.cli import main

sys.exit(main())
