"""The packages as they are built: what lintian says against the .deb, and both installed, upgraded and removed.

No RPM distribution is needed: rpm, and dpkg, work below a root of its own, this machine's files with a layer over them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from vm import image

SPEC = image.REPOSITORY / "deploy" / "packages" / "gpuhost-exporter.spec"
LIBRARY = "usr/lib/gpuhost-exporter"
CONFIG = "etc/gpuhost-exporter/config.toml"
REVIEWED = {
    "command-with-path-in-maintainer-script",  # postrm: the helper may be gone by then
    "copyright-without-copyright-notice",  # no licence has been chosen yet
    "initial-upload-closes-no-bugs",  # not Debian's own
    "no-manual-page",
    "unstripped-binary-or-object",  # wheels as their authors built them, by hash
}
INSIDE = """
set -e
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
rm -rf "$1/root/var/lib/rpm" && mkdir -p "$1/root/var/lib/rpm" "$1/root/packages" && cp "$2" "$3" "$1/root/packages"
mount --bind /dev "$1/root/dev"
chroot "$1/root" sh -ec "mount -t proc proc /proc; $4"
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def needs(*programs):
    lacking = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return pytest.mark.skipif(bool(lacking), reason=f"the packages are NOT tried: no {', '.join(lacking)} here")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs("dpkg-deb", "lintian")
def test_lintian_says_nothing_that_was_not_reviewed():
    done = subprocess.run(
        ["lintian", "--allow-root", image.package()], capture_output=True, text=True, check=False, timeout=200
    )
    found = set(re.findall(r"(?m)^[EW]: gpuhost-exporter: (\S+)", done.stdout))
    assert found, done.stderr
    assert found <= REVIEWED, done.stdout


@needs("dpkg-deb", "unshare", "deb-systemd-helper")
def test_the_deb_is_enabled_again_after_a_removal_unless_somebody_had_disabled_it(tmp_path):
    """dpkg hands a removed package's old version to postinst as it does an upgraded one's. No systemd runs here."""
    script = """
    install() { dpkg --force-depends --install $first >/dev/null; }
    remove() { dpkg --remove gpuhost-exporter >/dev/null 2>&1; }
    state() { systemctl is-enabled gpuhost-exporter.service || true; }
    install; state; remove; state; install; state
    systemctl disable --quiet gpuhost-exporter.service; install; state; remove; install; state
    dpkg --purge gpuhost-exporter >/dev/null 2>&1
    ls -d /etc/systemd/system/*/gpuhost-exporter* /etc/systemd/system/gpuhost-exporter* 2>/dev/null || true
    """
    deb = image.package()
    assert below(tmp_path, (deb, deb), script) == ["enabled", "masked", "enabled", "disabled", "disabled"]


@pytest.fixture(scope="module")
def rpms(tmp_path_factory):
    """This version and the next one, whose files are the same."""
    folder = tmp_path_factory.mktemp("rpm")
    (first,) = image.package().parent.glob("*.rpm")
    (folder / "staged").mkdir()
    with subprocess.Popen(["rpm2cpio", first], stdout=subprocess.PIPE) as unpacked:
        run("cpio", "--extract", "--make-directories", "--quiet", cwd=folder / "staged", stdin=unpacked.stdout)
    with (folder / "staged" / CONFIG).open("a") as file:
        file.write("# what a new version says here\n")
    defined = {"version_": "9.0.0", "staged": folder / "staged", "_topdir": folder / "build", "_rpmdir": folder}
    words = [word for name, value in defined.items() for word in ("--define", f"{name} {value}")]
    run("rpmbuild", "--quiet", "-bb", SPEC, *words)
    (second,) = folder.rglob("*9.0.0*.rpm")
    return first, second


def below(folder: Path, packages, script: str) -> list[str]:
    """The lines that the script prints in a root of its own, $first and $second the packages there."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("the package is NOT installed: a root of its own needs root")
    first, second = packages
    lines = f"first=/packages/{first.name} second=/packages/{second.name}; {script}"
    return run("unshare", "--mount", "--fork", "--pid", "sh", "-c", INSIDE, "sh", folder, *packages, lines).splitlines()


RPM = needs("rpmbuild", "rpm2cpio", "cpio", "unshare", "/usr/bin/python3.11")
COMPILED = f"find /{LIBRARY} -path '*__pycache__*' -name '*.pyc' | wc -l"
SOURCES = f"find /{LIBRARY} -name '*.py' | wc -l"


@RPM
def test_the_rpm_installs_runs_and_leaves_nothing_but_a_changed_configuration(tmp_path, rpms):
    script = f"""
    rpm --nodeps --install $first
    gpuhost-exporter --version
    getent passwd gpuhost-exporter | cut -d: -f1
    {COMPILED}; {SOURCES}
    echo '# ours' >>/{CONFIG}
    rpm --erase gpuhost-exporter 2>/dev/null
    test ! -e /{LIBRARY} && test ! -e /usr/bin/gpuhost-exporter && echo gone
    tail -1 /{CONFIG}.rpmsave
    """
    version, user, compiled, sources, *rest = below(tmp_path, rpms, script)
    assert version.startswith("gpuhost-exporter ")
    assert user == "gpuhost-exporter"
    assert int(compiled) == int(sources) > 200
    assert rest == ["gone", "# ours"]


@RPM
def test_an_upgrade_of_the_rpm_keeps_the_configuration_and_the_new_bytecode(tmp_path, rpms):
    """The old package's %preun runs after the new one's %post."""
    script = f"""
    rpm --nodeps --install $first
    echo '# ours' >>/{CONFIG}
    rpm --nodeps --upgrade $second 2>/dev/null
    rpm --query --queryformat '%{{VERSION}}\\n' gpuhost-exporter
    {COMPILED}; {SOURCES}
    tail -1 /{CONFIG}
    """
    version, compiled, sources, kept = below(tmp_path, rpms, script)
    assert version == "9.0.0"
    assert int(compiled) == int(sources) > 200, "all of it is compiled again at each start without"
    assert kept == "# ours"
