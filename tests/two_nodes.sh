#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces joined by a virtual cable, deepspeed in each.
#
#   bash tests/two_nodes.sh FLAGS        # those of main.py
#
# Hardware: Linux without a GPU (both nodes would take the same one), with the commands ip, unshare
#           and setpriv, as root or where users may make namespaces. Elsewhere a line says why it
#           cannot be, and the exit code is 77.
# Expect:   node 1's log, then the bytes that each node sent over the cable. If a node fails, or
#           after half an hour: node 2's log too, and an exit code other than 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../training_scripts/environment.sh"

skip() {
    echo "no namespaces: $1" >&2
    exit 77
}

# All of it runs in namespaces of its own. With the first process in there the kernel ends the
# others, and then the cable and the nodes are gone too, however this script ends.
if [ -z "${IN_NAMESPACE:-}" ]; then
    enter=(setpriv --pdeathsig KILL unshare --net --mount --pid --mount-proc --fork --kill-child)
    [ "$(id -u)" = 0 ] || enter+=(--map-root-user)
    reason="$("${enter[@]}" true 2>&1)" || skip "$reason"
    IN_NAMESPACE=yes "${enter[@]}" bash "$0" "$@" &
    trap 'kill -KILL $! 2>/dev/null || true' EXIT
    wait $!
    exit
fi

connect_nodes() {
    mount -t tmpfs tmpfs /var/run &&  # where ip keeps the nodes' names, unseen outside
        ip netns add node1 &&
        ip netns add node2 &&
        ip link add veth0 netns node1 type veth peer name veth0 netns node2 &&
        plug_in 1 &&
        plug_in 2
}

plug_in() {  # NODE
    ip -n "node$1" address add "10.77.0.$1/24" dev veth0 &&
        ip -n "node$1" link set veth0 up &&
        ip -n "node$1" link set lo up
}

run_node() {  # NODE FLAGS
    local node="$1"
    shift
    # gloo would take the loopback device, and nodes share no cache.
    GLOO_SOCKET_IFNAME=veth0 HF_DATASETS_CACHE="/var/run/cache$node" \
        timeout 1800 ip netns exec "node$node" \
        deepspeed --hostfile /var/run/hostfile --no_ssh --node_rank $((node - 1)) \
        --master_addr 10.77.0.1 "$ROOT/main.py" "$@"
}

export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
reason="$(connect_nodes 2>&1)" || skip "$reason"
printf '%s slots=1\n' 10.77.0.1 10.77.0.2 >/var/run/hostfile
run_node 1 "$@" &
run_node 2 "$@" >/var/run/node2.log 2>&1 &
for _ in 1 2; do  # the first to end: if it failed, the other one would wait for it
    wait -n || {
        code=$?
        echo "a node ended with exit code $code; the log of node 2:" >&2
        cat /var/run/node2.log >&2
        exit $code
    }
done
for node in 1 2; do
    sent="$(ip netns exec "node$node" cat /sys/class/net/veth0/statistics/tx_bytes)"
    echo "node $node sent $sent bytes over the cable"
done
