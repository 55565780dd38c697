"""NVLink, peers and fabric registration of the simulated library."""

from __future__ import annotations

from typing import Any

import pynvml

from gpuhost_exporter.sim.nvml_library import GpuState, Library, referred

_FABRIC_VERSIONS = (0x02000024, 0x03000028)
_FABRIC_COMPLETED = 3
_HOPPER = 9


class LinkCalls(Library):
    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        return int(link not in self._link(device, link).dead_links)

    def nvmlDeviceGetNvLinkVersion(self, device: Any, link: int) -> int:
        self._link(device, link)
        return self._model.link_version

    def nvmlDeviceGetNvLinkCapability(self, device: Any, link: int, capability: int) -> int:
        self._link(device, link)
        return int(capability != pynvml.NVML_NVLINK_CAP_SLI_BRIDGE)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int) -> int:
        self._link(handle, link)
        return int(pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, device: Any, link: int) -> Any:
        """An NVSwitch; a virtual machine is not told which."""
        self._link(device, link)
        switches = self._host.switches
        info = pynvml.nvmlPciInfo_t()
        if switches:
            info.busId = f"0000{switches[link % len(switches)].bdf}".upper().encode()
        else:
            info.busId = b"FFFFFFFF:FF:FF.0"
        return info

    def nvmlDeviceGetNvLinkErrorCounter(self, device: Any, link: int, counter: int) -> int:
        """From Hopper on this call answers 0 whatever happens; the field values tell."""
        state = self._link(device, link)
        counted = (pynvml.NVML_NVLINK_ERROR_DL_REPLAY, pynvml.NVML_NVLINK_ERROR_DL_RECOVERY)
        if self._model.architecture >= _HOPPER or counter not in counted:
            return 0
        return state.link_errors.get(link, 0)

    def nvmlDeviceGetP2PStatus(self, device1: Any, device2: Any, p2pIndex: int) -> int:
        pair = (self._ask(device1), self._ask(device2))
        if p2pIndex == pynvml.NVML_P2P_CAPS_INDEX_NVLINK and not self._linked(pair):
            return int(pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)
        return int(pynvml.NVML_P2P_STATUS_OK)

    def _linked(self, pair: tuple[GpuState, GpuState]) -> bool:
        if not self._model.links or any(state.gpu.mig for state in pair):
            return False
        return not self._host.fabric or all(state.fabric == _FABRIC_COMPLETED for state in pair)

    def nvmlDeviceGetTopologyCommonAncestor(self, device1: Any, device2: Any) -> int:
        one, other = self._gpu(device1), self._gpu(device2)
        if one.index == other.index:
            return int(pynvml.NVML_TOPOLOGY_INTERNAL)
        if one.pci.numa == other.pci.numa:
            return int(pynvml.NVML_TOPOLOGY_NODE)
        return int(pynvml.NVML_TOPOLOGY_SYSTEM)

    def nvmlDeviceGetGpuFabricInfoV(self, device: Any, gpuFabricInfo: Any) -> int:
        state = self._ask(device)
        info = referred(gpuFabricInfo)
        if info.version not in _FABRIC_VERSIONS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        info.state = state.fabric
        info.status = pynvml.NVML_SUCCESS
        info.cliqueId = 0
        degraded = 1 if state.dead_links else 2  # 1 is the bad state
        info.healthMask = degraded if state.fabric else 0
        if info.version == _FABRIC_VERSIONS[1]:
            info.healthSummary = (2 if state.dead_links else 1) if state.fabric else 0
        return int(pynvml.NVML_SUCCESS)

    def _link(self, device: Any, link: int) -> GpuState:
        state = self._ask(device)
        if not self._model.links:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if not 0 <= link < self._model.links:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return state
