"""Configuration: every mistake gets one line that names file, key and what was expected."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter import arguments, config
from gpuhost_exporter.errors import ConfigError

NAMES = ("gpu", "rdma")


@pytest.fixture
def load(tmp_path):
    def run(text):
        file = tmp_path / "exporter.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(str(file), NAMES)

    return run


def test_everything_that_can_be_configured_arrives(load, tmp_path):
    settings = load(
        """
        [web]
        listen-address = ["127.0.0.1:19400", "[::1]:19400"]
        config-file = "web.yml"
        [path]
        procfs = "/host/proc"
        sysfs = "/host/sys"
        [storage]
        path = "/var/lib/x"
        [log]
        level = "debug"
        [nvml]
        call-timeout = 5
        [collector.rdma]
        enabled = false
        interval = 20
        [inventory]
        gpus = 8
        arrays = ["md0"]
        [target]
        storage_good_bytes_per_second = 14e9
        """
    )
    assert settings == config.Settings(
        listen_addresses=("127.0.0.1:19400", "[::1]:19400"),
        web_config_file=str(tmp_path / "web.yml"),
        procfs="/host/proc",
        sysfs="/host/sys",
        storage_path="/var/lib/x",
        log_level="debug",
        nvml_call_timeout=5.0,
        collectors={"rdma": config.CollectorSettings(enabled=False, interval=20.0)},
        inventory={"gpus": 8, "arrays": ("md0",)},
        target={"storage_good_bytes_per_second": 14e9},
    )


def test_an_empty_file_changes_nothing(load):
    assert load("") == config.Settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[wbe]", "unknown key wbe; known here: web, path"),
        ("[web]\nlisten = 1", "unknown key web.listen; known here: listen-address, config-file"),
        ("[collector.nvlnik]", "unknown key collector.nvlnik; known here: gpu, rdma"),
        ("[collector.gpu]\nenabled = 1", "collector.gpu.enabled: expected true or false, got 1"),
        ("[collector.gpu]\ninterval = 0", "collector.gpu.interval: expected a number from 0.2 to 3600, got 0"),
        ("[collector.gpu]\ninterval = true", "collector.gpu.interval: expected a number"),
        ("[collector.gpu]\ninterval = nan", "collector.gpu.interval: expected a number"),
        ("[log]\nlevel = 'loud'", "log.level: expected one of debug, info, warning, error, got 'loud'"),
        ("[path]\nprocfs = 3", "path.procfs: expected a text, got 3"),
        ("[web]\nlisten-address = []", "web.listen-address: expected a list of texts, got []"),
        ("[inventory]\ngpus = -1", "inventory.gpus: expected a count or a list of names, got -1"),
        ("[inventory]\ncats = 1", "unknown key inventory.cats"),
        ("[target]\nx = 'fast'", "target.x: expected a number"),
        ("[ledger]\ngap_ratio = 'wide'", "ledger.gap_ratio: expected a number"),
        ("[price]\ngpu-hour = -1", "price.gpu-hour: expected a number"),
        ("[price]\nhour = 1", "unknown key price.hour; known here: gpu-hour, product"),
        ("[price.product]\nH100 = 'dear'", "price.product.H100: expected a number"),
        ("web = 3", "web: expected a table, got 3"),
        ("[web", "not TOML"),
        (b"\xff\xfe", "not TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(load, text, complaint):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert complaint in str(caught.value)
    assert "exporter.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        config.load(str(tmp_path / "none.toml"), NAMES)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
keys = st.sampled_from(
    ("web", "path", "storage", "log", "nvml", "collector", "inventory", "target", "ledger", "price", "other")
)


@given(st.dictionaries(keys, values))
def test_no_document_raises_anything_but_a_configuration_error(document):
    with contextlib.suppress(ConfigError):
        config.parse(document, "x.toml", NAMES)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("0.5s", 0.5), ("1d", 86400)]
)
def test_durations_are_written_as_prometheus_writes_them(text, seconds):
    assert arguments.positive_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "ten", "25h", "nan", "inf", "2d"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match="expected a duration"):
        arguments.positive_seconds(text)


@pytest.mark.parametrize(
    ("environment", "storage", "runtime"),
    [
        ({"STATE_DIRECTORY": "/a:/b", "RUNTIME_DIRECTORY": "/r"}, "/a", "/r"),
        ({"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/u"}, "/s/gpuhost-exporter", "/run/u/gpuhost-exporter"),
        ({"HOME": "/h"}, "/h/.local/state/gpuhost-exporter", "/h/.local/state/gpuhost-exporter/run"),
    ],
    ids=["systemd", "desktop", "plain"],
)
def test_state_and_runtime_folders_are_where_the_system_says(environment, storage, runtime):
    assert config.default_storage_path(environment) == storage
    assert config.default_runtime_path(environment) == runtime
