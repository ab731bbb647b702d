# What a host's BMC starts at power-on, in a network of its own: plugs in its cables and becomes the machine.
# $1 the script of the machine, $2 its name, $3 its number, $4 the prefix of both networks; the rest is for that script.
set -eu
init=$1 name=$2 number=$3 net=$4
# The addresses of its ports stay what they were, as those of hardware do: others remember them for a minute.
mac=$(printf %02x "$number")
switch="nsenter --net=/proc/$PPID/ns/net"
# Of a former boot that nobody unplugged.
for cable in data mgmt; do $switch ip link delete "$name-$cable" 2>/dev/null || :; done
$switch ip -batch - <<EOF
link add $name-data type veth peer name data address 02:00:00:00:01:$mac netns $$
link add $name-mgmt type veth peer name mgmt address 02:00:00:00:02:$mac netns $$
link set $name-data master br-data up
link set $name-mgmt master br-mgmt up
EOF
ip -batch - <<EOF
link set lo up
addr add $net.1.$((10 + number))/24 dev data
addr add $net.2.$((100 + number))/24 dev mgmt
link set data up
link set mgmt up
EOF
exec unshare --pid --mount --uts --ipc --fork --kill-child --mount-proc /bin/sh -c "$init" host "$@"
