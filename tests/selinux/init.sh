#!/bin/sh
# The first process of the machine: loads the policy, and runs the tests in the domain of a privileged container.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root WEIGHTLESS_SELINUX=machine
if [ -z "$POLICY_LOADED" ]; then
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mountpoint -q /dev || mount -t devtmpfs dev /dev
  mkdir -p /dev/pts /dev/shm
  mount -t devpts devpts /dev/pts
  mount -t tmpfs tmpfs /dev/shm
  mount -t tmpfs -o mode=0755 tmpfs /run
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null
  mount --make-rshared /
  ip link set lo up
  modprobe -a fuse overlay
  load_policy -i || echo "machine: no policy"
  export POLICY_LOADED=1
  exec "$0" "$@"
fi
restorecon -R /run /dev </dev/null >/run/restorecon 2>&1
cd /opt/src
eval "set -- $(cat /opt/arguments)"
echo "machine: Linux $(uname -r), SELinux $(getenforce)"
{ runcon system_u:system_r:spc_t:s0 /opt/src/.venv/bin/python -m pytest -p no:cacheprovider -o faulthandler_timeout=0 "$@" </dev/null 2>&1; echo "machine: exit $?"; } | cat
dmesg | grep 'avc:  denied' | tail -n 30
sync
echo o >/proc/sysrq-trigger
sleep 30
