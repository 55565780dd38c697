#!/usr/bin/env bash
# Debian sid's Prometheus 3 and its promtool below FOLDER, installed nowhere. From the mirror that this machine's own apt
# configuration names.
#   tests/support/newer-prometheus.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?a folder to put it in}")
test -x "$folder/usr/bin/promtool" && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{parts,lists/partial,archives/partial,debs} "$folder"
# One-line and deb822 sources; only the suite changes.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
  test -f "$file" || continue
  case $file in
    *.list) sed -E 's#^(deb (\[[^]]*\] )?[^ ]+) [^ ]+#\1 sid#; /security/d' "$file" >"$work/parts/${file##*/}" ;;
    *.sources) awk 'BEGIN { RS = ""; ORS = "\n\n" } !/security/' "$file" | sed -E 's/^Suites:.*/Suites: sid/' \
      >"$work/parts/${file##*/}" ;;
  esac
done
apt=(apt-get -qq -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$work/parts"
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache::Archives=$work/archives" -o "APT::Sandbox::User=root"
  -o "Acquire::Check-Valid-Until=false")
"${apt[@]}" update
cd "$work/debs"
"${apt[@]}" download prometheus promtool
for package in *.deb; do dpkg -x "$package" "$folder"; done
"$folder/usr/bin/promtool" --version | head -1
