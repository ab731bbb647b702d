# The first process of a host: its own folders, libvirtd, the agent. When it is killed, all that runs on the host is gone.
# $1 itself, $2 name, $3 number, $4 the networks' prefix, $5 directory, $6 agent, $7 its configuration, $8 the file that
# holds agents back, $9 what libvirt knows of QEMU.
set -eu
name=$2 number=$3 dir=$5 agent=$6 config=$7 held=$8 cache=$9
echo "$name" > /proc/sys/kernel/hostname
readlink /proc/self/ns/net > "$dir/netns"
# What is in memory only: new at each boot.
mount -t tmpfs -o mode=755,size=64m tmpfs /run
mkdir -p /run/dev/pts /run/dev/shm /run/dev/net
while read -r device major minor; do mknod -m 666 "/run/dev/$device" c "$major" "$minor"; done <<EOF
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
EOF
ln -s /proc/self/fd /run/dev/fd
# Without kvm: QEMU emulates, and libvirt need not find out each time that it can't do otherwise.
mount --rbind /run/dev /dev
mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
# What is on its disk: it outlives the power.
for folder in etc lib log pulse; do mkdir -p "$dir/$folder"; done
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind "$dir/etc" /etc/libvirt
mount --bind "$dir/lib" /var/lib/libvirt
mount --bind "$dir/log" /var/log/libvirt
mount --bind "$cache" /var/cache/libvirt
mount --bind "$dir/pulse" /mnt
# Names must resolve at once: a question to a name server that does not answer holds up every start.
printf '127.0.0.1 localhost %s\n' "$name" > "$dir/hosts"
printf 'options timeout:1 attempts:1\n' > "$dir/resolv.conf"
printf 'hosts: files\npasswd: files\ngroup: files\nservices: files\nprotocols: files\n' > "$dir/nsswitch.conf"
cp /etc/passwd /etc/group "$dir"
grep -q ^libvirt-qemu: "$dir/passwd" || echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >> "$dir/passwd"
grep -q ^libvirt-qemu: "$dir/group" || echo 'libvirt-qemu:x:64055:' >> "$dir/group"
grep -q ^kvm: "$dir/group" || echo 'kvm:x:64056:' >> "$dir/group"
for file in hosts resolv.conf nsswitch.conf passwd group; do mount --bind "$dir/$file" "$(realpath "/etc/$file")"; done
cat > /etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
auth_unix_ro = "none"
listen_tls = 0
host_uuid = "00000000-0000-4000-9000-$(printf %012x "$number")"
log_level = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
EOF
cat > /etc/libvirt/qemu.conf <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
EOF
# Both are started again when they end, as their systemd units say.
while :; do /usr/sbin/libvirtd -f /etc/libvirt/libvirtd.conf < /dev/null >> "$dir/libvirtd.out" 2>&1 || :; sleep 0.2; done &
rm -rf "$dir/run" && mkdir "$dir/run"
cat /proc/sys/kernel/random/uuid > "$dir/boot-id"
while :; do
  while [ -e "$held" ]; do sleep 0.02; done
  "$agent" run --config "$config" || :
  sleep 0.1
done
