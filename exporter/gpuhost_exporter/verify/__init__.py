"""`gpuhost-exporter verify`: accept or reject this host, by what it tells and by what it delivers when asked."""
