# Shared by the boot scripts. Sourced, not run.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8
DC=/run/dc

# The console may appear only with its driver (Cloud Hypervisor's hvc0), so it is opened for every line.
say() {
    read -r up _ </proc/uptime
    echo "[$up] decent-cloud: $*" >/dev/console 2>/dev/null || true
}

# One line that a person looking for trouble will find, on the console and in /run/dc/warnings.
warn() {
    echo "$*" >>"$DC/warnings"
    say "WARNING: $*"
}

mounted() {
    while read -r _ dir _; do
        [ "$dir" = "$1" ] && return 0
    done </proc/mounts
    return 1
}

# The block device whose virtio serial is $1, or nothing.
disk_with_serial() {
    for file in /sys/block/*/serial; do
        [ -r "$file" ] || continue
        read -r serial <"$file" || [ -n "$serial" ] || continue
        if [ "$serial" = "$1" ]; then
            name=${file%/serial}
            echo "/dev/${name##*/}"
            return 0
        fi
    done
    return 1
}

# True where the machine's owner must not read this VM's memory: an SNP or TDX guest, or the simulated platform; also
# where nobody could tell.
confidential() {
    platform=
    [ -r $DC/platform ] && read -r platform <"$DC/platform"
    [ "$platform" != plain ]
}
