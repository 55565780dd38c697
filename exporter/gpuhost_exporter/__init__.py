"""gpuhost-exporter: says whether a GPU host delivers the metal that is paid for."""

__version__ = "0.1.0"
