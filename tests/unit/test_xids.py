"""The XID catalogue: NVIDIA's actions, this exporter's severities."""

from __future__ import annotations

import pytest

from gpuhost_exporter.targets import read_data
from gpuhost_exporter.xids import SEVERITIES, Catalogue

CATALOGUE = Catalogue.load()


@pytest.mark.parametrize(
    ("code", "severity", "action"),
    [
        (13, "application", "RESTART_APP"),
        (31, "application", "RESTART_APP"),
        (43, "application", "IGNORE"),
        (48, "critical", "WORKFLOW_XID_48"),
        (63, "warning", "IGNORE"),
        (79, "critical", "RESTART_BM"),
        (94, "warning", "RESTART_APP"),
        (95, "critical", "RESET_GPU"),
        (109, "warning", "RESET_GPU"),
        (119, "critical", "RESET_GPU"),
        (154, "info", "XID_154"),
        (163, "info", ""),
    ],
)
def test_what_a_code_means_without_its_text(code, severity, action):
    entry = CATALOGUE.entries[code]
    assert (CATALOGUE.severity(code, ""), entry.action) == (severity, action)


@pytest.mark.parametrize(
    ("code", "text", "severity"),
    [
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6)", "critical"),
        (145, "RLW_REMAP Nonfatal XC0 i0 Link 00 (0x00000004)", "warning"),
        (154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", "critical"),
        (154, "GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)", "critical"),
        (154, "GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", "warning"),
        (154, "GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)", "info"),
        (13, "Graphics Exception: Fatal", "application"),
        (9999, "Fatal", "warning"),
    ],
)
def test_the_kernel_logs_text_decides_where_the_code_alone_does_not(code, text, severity):
    assert CATALOGUE.severity(code, text) == severity


def test_every_entry_is_listed_once_and_watched_codes_are_faults_of_hardware():
    codes = [entry["code"] for entry in read_data("xids.toml")["xid"]]
    assert len(codes) == len(set(codes)) == len(CATALOGUE.entries)
    assert len(CATALOGUE.watched) == 12
    for code in CATALOGUE.watched:
        entry = CATALOGUE.entries[code]
        assert entry.severity in ("critical", "warning")
        assert entry.action
    assert {entry.severity for entry in CATALOGUE.entries.values()} == set(SEVERITIES)
