#!/usr/bin/env bash
# What a host should have for so many connections: the one place that says it, for check and for apply. Sourced.

# shellcheck source=tuning/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What the gateway itself reckons with: src/runtime/preflight.rs.
files_reserved=100
files_per_shard=24
memlock_per_shard=$((640 * 1024))

files_needed() { echo $((connections + files_reserved + files_per_shard * $(shards))); }
memlock_needed() { echo $((memlock_per_shard * $(shards))); }

# How long a unit has to wait before it kills: a drain, and the goodbyes of who stayed to its end.
stop_needed() {
    local drain
    drain=$(config drain.timeout 30s)
    # Of the gateway's no time is none, not for ever.
    if [[ $drain == 0 || $drain == 0s ]]; then drain=1ms; fi
    echo $(($(seconds drain.timeout "$drain") + 10))
}
unit_stop() { seconds TimeoutStopSec "$("$1" 'TimeoutStopSec|TimeoutSec')"; } # own_limit or unit_limit

memory_pages() { echo $(($(awk '$1 == "MemTotal:" { print $2 }' "$root/proc/meminfo") * 1024 / $(getconf PAGESIZE))); }

# Packets that did not fit between a card, loopback or RPS and the protocol, since boot.
softnet_drops() {
    local drops total=0
    while read -r _ drops _; do total=$((total + 16#$drops)); done <"$root/proc/net/softnet_stat"
    echo $total
}

# What a value becomes: field by field the larger or the smaller one, or the rule's own. `-` leaves a field alone.
target() { # RULE NOW WANTED
    local now wanted field out=()
    read -ra now <<<"$2"
    read -ra wanted <<<"$3"
    for field in "${!now[@]}"; do
        case $1:${wanted[field]} in
            *:-) out+=("${now[field]}") ;;
            at_least:*) out+=($((now[field] > wanted[field] ? now[field] : wanted[field]))) ;;
            at_most:*) out+=($((now[field] < wanted[field] ? now[field] : wanted[field]))) ;;
            exactly:*) out+=("${wanted[field]}") ;;
        esac
    done
    echo "${out[*]}"
}

sysctl_path() { echo "/proc/sys/${1//.//}"; }

# Calls VISIT NAME NOW TARGET WANTED REASON EFFECT for each sysctl that this kernel has. READ PATH tells what to start from.
each_sysctl() { # VISIT READ
    local visit=$1 read=$2 backlog files pages
    backlog=$(whole listen_backlog "$(config listen_backlog 4096)")
    files=$(files_needed)
    tell() { # NAME RULE WANTED REASON EFFECT
        local now bound=$3
        now=$("$read" "$(sysctl_path "$1")") || return 0
        case $2 in
            at_least) bound+=" or more" ;;
            at_most) bound+=" or less" ;;
        esac
        "$visit" "$1" "$now" "$(target "$2" "$now" "$3")" "$bound" "$4" "$5"
    }

    tell fs.nr_open at_least "$files" "no process may have more files open, whatever its limit" "the gateway starts with limits.connections"
    tell fs.file-max at_least $((files + files / 10 + 10000)) "files of all processes; each socket is one" "accept never fails for want of files"

    tell net.core.somaxconn at_least "$backlog" "caps each shard's listen_backlog" "a rush waits in the queue instead of trying again after 1, 3, 7 s"
    tell net.ipv4.tcp_max_syn_backlog at_least "$backlog" "half-open connections per listener where SYN cookies are off" "a rush is not dropped at its first packet"
    tell net.ipv4.tcp_syncookies at_least 1 "what happens when too many are half open" "clients still connect during a SYN flood"

    pages=$((connections < $(memory_pages) / 4 ? connections : $(memory_pages) / 4))
    tell net.ipv4.tcp_mem at_least "$((pages * 3 / 4)) $pages $((pages * 3 / 2))" "pages of all socket buffers; one with anything queued has a page or more" "a broadcast to everyone does not put TCP under memory pressure"
    if ((connections > 50000)); then
        tell net.ipv4.tcp_rmem at_most "- - 1048576" "what a client that sends faster than is read can make the kernel hold" "thousands of bad clients cost 1 MiB each, not 6 or 32"
        tell net.ipv4.tcp_wmem at_most "- - 1048576" "what a client that does not read can make the kernel hold, besides limits.outbox_bytes" "thousands of slow clients cost 1 MiB each, not 4"
    fi
    if ((connections >= 100000 || $(softnet_drops) > 0)); then
        tell net.core.netdev_max_backlog at_least 10000 "queue per CPU of packets from RPS, loopback and veth; /proc/net/softnet_stat counts what did not fit" "bursts, such as everyone coming back, lose no packets"
    fi
    tell net.core.busy_poll exactly 0 "shards wait for all sockets at once; polling devices spins" "idle shards use no CPU"
    tell net.core.busy_read exactly 0 "as busy_poll" "idle shards use no CPU"
    if behind_local_proxy; then
        if ((connections > 25000)); then
            tell net.ipv4.ip_local_port_range exactly "10000 65535" "a proxy on this host has one port per connection and address of the gateway" "55,536 connections per pair of addresses instead of 28,232"
        fi
        tell net.ipv4.tcp_tw_reuse at_least 1 "the proxy's ports of closed connections" "a restart does not wait 60 s for ports"
    fi
    tell net.netfilter.nf_conntrack_max at_least $((connections + connections / 4 + 10000)) "connection tracking is loaded; each connection is an entry" "new clients are not dropped when the table is full"
    tell kernel.io_uring_disabled exactly 0 "the executor of every shard is an io_uring" "the gateway starts"
    tell vm.max_map_count at_least 65530 "the kernel's default; maps do not grow with connections" "no surprise where somebody lowered it"
    tell vm.overcommit_memory at_most 1 "2 refuses memory that is reserved and not used" "tables can grow while memory is free"
}

# Calls VISIT CARD IRQ NOW TARGET for each queue's interrupt of each card, where the configuration says which CPUs shards have.
each_irq() { # VISIT
    local card irq queue cpus now
    [[ $config_file ]] || return 0
    for card in $(cards); do
        mapfile -t cpus < <(irq_cpus "$(card_node "$card")")
        [[ ${cpus[0]:-} ]] || continue
        while read -r irq queue; do
            now=$(value "/proc/irq/$irq/smp_affinity_list") || continue
            "$1" "$card" "$irq" "$now" "${cpus[queue % ${#cpus[@]}]}"
        done < <(card_irqs "$card")
    done
}

# Calls VISIT CARD PATH NOW TARGET for cards with one queue: without RPS one CPU would do the network's work for all shards.
each_rps() { # VISIT
    local card queues cpus now
    [[ $config_file ]] || return 0
    for card in $(cards); do
        queues=$(matching "/sys/class/net/$card/queues/rx-*/rps_cpus")
        cpus=$(irq_cpus "$(card_node "$card")")
        if [[ $(wc -l <<<"$queues") -gt 1 || $(wc -l <<<"$cpus") -lt 2 ]]; then continue; fi
        now=$(value "$queues") || continue
        # The kernel writes masks of all CPUs that could be.
        "$1" "$card" "$queues" "$(sed -E 's/^[0,]*(.)/\1/' <<<"$now")" "$(cpu_mask <<<"$cpus")"
    done
}

irqbalance_runs() { # it would undo any pinning
    local comm
    for comm in $(matching '/proc/[0-9]*/comm'); do
        if [[ $(value "$comm" || true) == irqbalance ]]; then return 0; fi
    done
    return 1
}
