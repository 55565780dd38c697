#!/usr/bin/env bash
# Builds dist/: wheel, sdist, SBOM (CycloneDX), .deb and, where rpmbuild is installed, .rpm.
#
#   deploy/packages/build.sh [FOLDER]
#
# Packages bring their Python dependencies along, pinned by hash in requirements.txt: pure Python or the stable ABI
# only, so that one package serves every CPython from 3.10 (.deb) or RHEL 9's python3.11 (.rpm). Everything is
# installed below /usr/lib/gpuhost-exporter; nothing touches the system's own Python packages.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dist=$(mkdir -p "${1:-$root/dist}" && cd "${1:-$root/dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
machine=$(uname -m)
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}"

# A copy, so that no build folder of the tree ends up in a package.
python_packages() {
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
    --only-binary :all: --requirement "$here/build-requirements.txt"
  mkdir "$work/source"
  tar -C "$root" --exclude-vcs --exclude=.venv --exclude=dist --exclude=build --exclude='*.egg-info' \
    -cf - pyproject.toml README.md CHANGELOG.md exporter | tar -C "$work/source" -xf -
  "$work/venv/bin/python" -m build --no-isolation --outdir "$dist" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
}

# What .deb and .rpm have in common.
stage() { # stage FOLDER INTERPRETER
  local folder=$1 interpreter=$2 library=$1/usr/lib/gpuhost-exporter
  mkdir -p "$library" "$folder"/{usr/bin,usr/share/doc/gpuhost-exporter,etc/gpuhost-exporter} \
    "$folder"/usr/lib/{systemd/system,sysusers.d} "$folder/usr/share/gpuhost-exporter"
  # Markers are dropped: the package serves other Pythons than the one that builds it.
  sed 's/ ;.*\\$/ \\/' "$here/requirements.txt" >"$work/requirements.txt"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --target "$library" --no-deps \
    --require-hashes --only-binary :all: --implementation cp --python-version 3.10 --abi cp310 --abi abi3 --abi none \
    --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux2014_$machine" \
    --platform "manylinux_2_12_$machine" --platform any --requirement "$work/requirements.txt"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --target "$library" --no-deps \
    "$dist/gpuhost_exporter-$version-py3-none-any.whl"
  # PyYAML's extension fits one Python only; without it PyYAML reads the same in Python.
  find "$library" -name '*.cpython-*.so' -delete
  rm -rf "$library/bin" "$library/example.py"  # the latter nvidia-ml-py brings
  find "$library" -name '*.py' -exec sed -i '1{/^#!/d}' {} +  # nothing there is started by itself
  if find "$library" -name '*.so' | grep -v 'abi3\.so$'; then
    echo "$0: an extension that is bound to one Python version" >&2
    exit 1
  fi
  sed "s|@INTERPRETER@|$interpreter|" "$here/gpuhost-exporter.in" >"$folder/usr/bin/gpuhost-exporter"
  chmod 0755 "$folder/usr/bin/gpuhost-exporter"
  install -m 0644 "$here/../systemd/gpuhost-exporter.service" "$folder/usr/lib/systemd/system/"
  install -m 0644 "$here/../systemd/gpuhost-exporter.sysusers" "$folder/usr/lib/sysusers.d/gpuhost-exporter.conf"
  install -m 0644 "$here"/../systemd/*.conf "$folder/usr/share/gpuhost-exporter/"
  install -m 0644 "$here/../web.yml" "$folder/usr/share/gpuhost-exporter/"
  python3 "$here/sbom.py" "$here/requirements.txt" "$version" >"$folder/usr/share/gpuhost-exporter/sbom.cdx.json"
  install -m 0644 "$here/config.toml" "$folder/etc/gpuhost-exporter/config.toml"
  install -m 0644 "$root/README.md" "$root/CHANGELOG.md" "$folder/usr/share/doc/gpuhost-exporter/"
  find "$folder" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

deb() {
  local folder=$work/deb architecture
  architecture=$(dpkg --print-architecture)
  stage "$folder" /usr/bin/python3
  mkdir "$folder/DEBIAN"
  for script in postinst prerm postrm; do
    install -m 0755 "$here/deb/$script" "$folder/DEBIAN/$script"
  done
  echo /etc/gpuhost-exporter/config.toml >"$folder/DEBIAN/conffiles"
  gzip -9nc "$root/CHANGELOG.md" >"$folder/usr/share/doc/gpuhost-exporter/changelog.gz"
  printf 'gpuhost-exporter (%s-1) stable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' "$version" \
    "$(sed -n 's/^Maintainer: //p' "$here/deb/control.in")" "$(date -uRd "@$SOURCE_DATE_EPOCH")" |
    gzip -9n >"$folder/usr/share/doc/gpuhost-exporter/changelog.Debian.gz"
  install -m 0644 "$here/deb/copyright" "$folder/usr/share/doc/gpuhost-exporter/copyright"
  sed -e "s/@VERSION@/$version-1/" -e "s/@ARCHITECTURE@/$architecture/" \
    -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$folder" | cut -f1)/" "$here/deb/control.in" >"$folder/DEBIAN/control"
  (cd "$folder" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$folder/DEBIAN/md5sums"
  chmod -R u=rwX,go=rX "$folder"
  dpkg-deb --root-owner-group --build "$folder" "$dist/gpuhost-exporter_$version-1_$architecture.deb" >/dev/null
}

rpm() {
  local folder=$work/rpm
  stage "$folder" /usr/bin/python3.11
  chmod -R u=rwX,go=rX "$folder"
  rpmbuild --quiet -bb "$here/gpuhost-exporter.spec" --define "version_ $version" --define "staged $folder" \
    --define "_topdir $work/rpmbuild" --define "_rpmdir $dist" --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm"
}

python_packages
python3 "$here/sbom.py" "$here/requirements.txt" "$version" >"$dist/gpuhost-exporter-$version.cdx.json"
if command -v dpkg-deb >/dev/null; then deb; else echo "no dpkg-deb: no .deb"; fi
if command -v rpmbuild >/dev/null; then rpm; else echo "no rpmbuild: no .rpm"; fi
ls -1 "$dist"
