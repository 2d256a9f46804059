#!/bin/sh
# cache.sh FOLDER   mounts a disk of the machine's own (NVMe) on the folder, for copies of data.
#
# A machine without such a disk gets the folder on its first disk. What lies there ends with the machine.
set -eu
folder=$1
if ! mountpoint -q "$folder"; then
    # AWS names them so. One that is in use, because some images mount them, is left alone.
    disk=$(lsblk -rdpno NAME,MODEL | awk '/Instance.*Storage/ {print $1}' | while read -r name; do
        [ "$(lsblk -rno NAME,MOUNTPOINTS "$name" | wc -w)" -ne 1 ] || { echo "$name"; break; }
    done)
    sudo mkdir -p "$folder"
    if [ -n "$disk" ]; then
        sudo mkfs.ext4 -q -E nodiscard "$disk"
        sudo mount "$disk" "$folder"
    fi
fi
sudo chown "$(id -u)" "$folder"
df -h "$folder"
