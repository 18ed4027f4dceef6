#!/usr/bin/env bash
# build.sh BIN BUILD [--iso] IMAGE… : builds the images that the boot tests want into BUILD/test-image, with the programs in BIN.
#
# `first` and `second` are the same, built at two times into two folders; `next` is the successor, which also asks a URL for
# its settings. hostd is the other tests', without its debug information. VMs inside run under QEMU, or under Cloud Hypervisor
# if HOSTD_CLOUD_HYPERVISOR names it.
set -euo pipefail
bin=$1 build=$2
shift 2
more=()
if [ "$1" = --iso ]; then more=(--iso) && shift; fi
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$build/test-image
mkdir -p "$out/seed"
strip -o "$out/hostd" "$bin/hostd"
[ -e "$out/keys/update.key" ] || "$bin/image-builder" keys --dir "$out/keys" --cache "$build/cache"

sed "s,\"\.\./\.\./,\"$root/,; s,^# packages_qemu,packages_qemu," "$root/image-builder/appliance/image.toml" >"$out/image.toml"
if [ -n "${HOSTD_CLOUD_HYPERVISOR:-}" ]; then
  digest=$(sha256sum "$HOSTD_CLOUD_HYPERVISOR" | cut -d' ' -f1)
  printf '\n[[program]]\npath = "%s"\nsha256 = "%s"\nto = "usr/bin/cloud-hypervisor"\n' \
    "$HOSTD_CLOUD_HYPERVISOR" "$digest" >>"$out/image.toml"
fi

cp "$here/pinned-seed.toml" "$out/seed/provider-seed.toml"
[ -e "$out/seed/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=seed \
  -addext subjectAltName=IP:10.0.2.2 -addext basicConstraints=critical,CA:FALSE \
  -keyout "$out/seed/key.pem" -out "$out/seed/cert.pem" 2>"$out/seed/log"
digest=$(sha256sum "$out/seed/provider-seed.toml" | cut -d' ' -f1)
{
  sed 's/^version = .*/version = "0.2.0"/' "$out/image.toml"
  printf '\n[seed]\nurl = "https://10.0.2.2:18443/provider-seed.toml"\nsha256 = "%s"\nca = "seed/cert.pem"\n' "$digest"
} >"$out/next.toml"

for image; do
  if [ "$image" = next ]; then config=next; else config=image; fi
  "$bin/image-builder" build --config "$out/$config.toml" --cache "$build/cache" \
    --hostd "$out/hostd" --keys "$out/keys" --out "$out/$image" "${more[@]}"
done
