"""Faults that the host's chips tell: memory, fans, power supplies."""

from __future__ import annotations

from trees import host_at, plant, values

from gpuhost_exporter.collectors.machine import MachineCollector
from gpuhost_exporter.sources import sensors
from gpuhost_exporter.sources.sensors import MemoryErrors, Sensor

EDAC = "sys/devices/system/edac/mc"
MEMORY = {
    f"{EDAC}/mc0/ce_count": "12\n",
    f"{EDAC}/mc0/ue_count": "0\n",
    f"{EDAC}/mc0/dimm0/dimm_label": "CPU_SrcID#0_MC#0_Chan#0_DIMM#0\n",
    f"{EDAC}/mc0/dimm0/dimm_ce_count": "12\n",
    f"{EDAC}/mc0/dimm0/dimm_ue_count": "0\n",
    f"{EDAC}/mc0/dimm1/dimm_ce_count": "0\n",
    f"{EDAC}/mc1/ce_count": "garbage\n",
    f"{EDAC}/power/control": "auto\n",
}
CHIPS = {
    "sys/class/hwmon/hwmon4/name": "pmbus\n",
    "sys/class/hwmon/hwmon4/fan1_fault": "0\n",
    "sys/class/hwmon/hwmon4/fan1_alarm": "1\n",
    "sys/class/hwmon/hwmon4/fan1_label": "PSU fan\n",
    "sys/class/hwmon/hwmon4/fan2_min_alarm": "0\n",
    "sys/class/hwmon/hwmon4/fan2_input": "8123\n",
    "sys/class/hwmon/hwmon4/power1_alarm": "0\n",
    "sys/class/hwmon/hwmon4/temp1_alarm": "1\n",
    "sys/class/hwmon/hwmon5/name": "power_meter\n",
    "sys/class/hwmon/hwmon5/power1_alarm": "1\n",
    "sys/class/power_supply/PSU1/type": "Mains\n",
    "sys/class/power_supply/PSU1/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/online": "0\n",
}


def test_controllers_and_their_modules_tell_their_errors(tmp_path):
    assert list(sensors.memory_errors(plant(tmp_path, MEMORY))) == [
        MemoryErrors("mc0", None, 12, 0),
        MemoryErrors("mc0", "CPU_SrcID#0_MC#0_Chan#0_DIMM#0", 12, 0),
        MemoryErrors("mc0", "dimm1", 0, None),
        MemoryErrors("mc1", None, None, None),
    ]


def test_alarms_of_fans_and_power_are_told_and_no_others(tmp_path):
    """A power meter's alarm is about a limit that was set, not about a broken supply."""
    assert list(sensors.faults(plant(tmp_path, CHIPS))) == [
        Sensor("fan", "hwmon4:pmbus", "PSU fan", faulty=True),
        Sensor("fan", "hwmon4:pmbus", "fan2", faulty=False),
        Sensor("power", "hwmon4:pmbus", "power1", faulty=False),
        Sensor("power", "power_supply", "PSU1", faulty=True),
    ]


def test_only_a_module_that_has_had_errors_has_a_series_of_its_own(tmp_path):
    found = values(MachineCollector(host_at(tmp_path, MEMORY | CHIPS)).poll(0.0))
    faults = {name: value for name, value in found.items() if name[0].startswith(("memory_", "fan", "power"))}
    assert faults == {
        ("memory_errors_total", "mc0", "corrected"): 12,
        ("memory_errors_total", "mc0", "uncorrected"): 0,
        ("memory_dimm_errors_total", "mc0", "CPU_SrcID#0_MC#0_Chan#0_DIMM#0", "corrected"): 12,
        ("fan_fault", "hwmon4:pmbus", "PSU fan"): 1,
        ("fan_fault", "hwmon4:pmbus", "fan2"): 0,
        ("power_supply_fault", "hwmon4:pmbus", "power1"): 0,
        ("power_supply_fault", "power_supply", "PSU1"): 1,
    }


def test_a_machine_whose_chips_only_the_bmc_sees_tells_nothing(tmp_path):
    root = plant(tmp_path, {})
    assert (list(sensors.memory_errors(root)), list(sensors.faults(root))) == ([], [])
