#!/usr/bin/env bash
# Builds the guest of tests/vm: OUT/kernel, OUT/initrd and OUT/root.img, a Debian with the tools the tests compare
# with and the exporter's dependencies (not the exporter) in /opt/gpuhost-exporter. image.py calls it.
#     build-image.sh OUT SUITE PACKAGES WHEELS      PACKAGES with commas between them, WHEELS a folder
set -euo pipefail
out=$1 suite=$2 packages=$3 wheels=$4
root=$out/rootfs
# Once in the guest under emulation is ten times as slow as here: only what the tests use of the kernel and documents.
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/*' \
  --dpkgopt='path-include=/lib/modules/*/kernel/drivers/net/dummy.ko' \
  --dpkgopt='path-include=/lib/modules/*/kernel/drivers/net/net_failover.ko' \
  --dpkgopt='path-include=/lib/modules/*/kernel/drivers/net/veth.ko' \
  --dpkgopt='path-include=/lib/modules/*/kernel/drivers/net/virtio_net.ko' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*' \
  --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
  --essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/small"' \
  --essential-hook='printf "virtio_pci\nvirtio_blk\next4\n" >"$1/etc/initramfs-tools/modules"' \
  "$suite" "$root"

cat >"$root/etc/systemd/network/virtio.network" <<'END'
[Match]
Driver=virtio_net
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
END
echo gpuhost >"$root/etc/hostname"
echo '127.0.0.1 localhost gpuhost' >"$root/etc/hosts"
# Arrays are put together by the tests alone; nothing may start by the clock while figures are compared.
echo 'AUTO -all' >"$root/etc/mdadm/mdadm.conf"
systemctl --quiet --root="$root" enable systemd-networkd
systemctl --quiet --root="$root" mask mdmonitor.service mdcheck_start.timer mdcheck_continue.timer \
  getty@tty1.service serial-getty@ttyS0.service systemd-timesyncd.service systemd-networkd-wait-online.service \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer

mkdir "$root/opt/wheels"
cp "$wheels"/*.whl "$root/opt/wheels/"
chroot "$root" python3 -m venv /opt/gpuhost-exporter
chroot "$root" sh -c '/opt/gpuhost-exporter/bin/pip install --quiet --no-index --no-deps /opt/wheels/*.whl'

cp "$root"/boot/vmlinuz-* "$out/kernel"
cp "$root"/boot/initrd.img-* "$out/initrd"
truncate -s 3G "$out/root.img"
mke2fs -q -F -t ext4 -O ^has_journal -d "$root" "$out/root.img"
rm -rf "$root"
