#!/usr/bin/env bash
# What check and apply share: the command line, what this host says, what the configuration says. Sourced.
# Everything is read and written below $root, which is empty for this host itself.

# Wrong usage that is found in a $(...) ends the script, too.
shopt -s inherit_errexit

root='' config_file='' connections='' config_lines=''

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

misused() { # WHAT: wrong usage has an exit code of its own
    echo "${0##*/}: $*; ${0##*/} --help" >&2
    exit 2
}

# The comment at the head of the script.
help() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

whole() { # NAME VALUE: underscores as in TOML
    local digits=${2//_/}
    [[ $digits =~ ^[0-9]{1,9}$ ]] || misused "$1 is a whole number, not '$2'"
    echo $((10#$digits))
}

# Takes --connections, --config and --root, and leaves what else there is in rest.
read_options() { # ARGUMENT...
    rest=()
    while (($#)); do
        case $1 in
            --connections | --config | --root)
                (($# >= 2)) || misused "$1 needs a value"
                case $1 in
                    --connections) connections=$(whole "$1" "$2") ;;
                    --config) config_file=$2 ;;
                    --root) root=${2%/} ;;
                esac
                shift
                ;;
            --help) help && exit 0 ;;
            *) rest+=("$1") ;;
        esac
        shift
    done
    [[ -d $root/ ]] || misused "--root: there is no directory $root"
    read_config
    if [[ -z $connections ]]; then connections=$(whole limits.connections "$(config limits.connections 10000)"); fi
    ((connections > 0)) || misused "--connections must be above 0"
    # So that what is wrong with them is said first, and once.
    shards >/dev/null
    shard_cpus >/dev/null
}

# --- files ------------------------------------------------------------------------------------------------------------

value() { # PATH: its words with single spaces between; fails where there is no such file
    local words
    [[ -r $root$1 ]] && words=$(tr -s '[:space:]' ' ' 2>/dev/null <"$root$1") || return 1
    words=${words# }
    echo "${words% }"
}

matching() { # PATTERN: paths below the root, without it; none is no error
    local path
    for path in "$root"$1; do
        if [[ -e $path ]]; then echo "${path#"$root"}"; fi
    done
}

# --- the configuration ------------------------------------------------------------------------------------------------

# Few keys matter here, so this reads lines of `key = value` below `[section]`. shardgate --check-config reads all of TOML.
read_config() {
    [[ $config_file ]] || return 0
    [[ -r $config_file ]] || misused "--config: cannot read $config_file"
    config_lines=$(awk '
        { sub(/^[[:space:]]*#.*/, ""); sub(/[[:space:]]#.*/, "") }
        /^[[:space:]]*\[[^=]*\][[:space:]]*$/ { gsub(/[][[:space:]]/, ""); section = $0 "."; next }
        /=/ {
            key = value = $0
            sub(/=.*/, "", key); sub(/^[^=]*=/, "", value)
            gsub(/[[:space:]]/, "", key); gsub(/[[:space:]"'\'']/, "", value)
            print section key "=" value
        }' "$config_file")
}

config() { # KEY DEFAULT
    local line found=$2
    while read -r line; do
        if [[ ${line%%=*} == "$1" ]]; then found=${line#*=}; fi
        # limits = { connections = 5 } means the same, but is not understood here.
        if [[ ${line%%=*} == "${1%%.*}" && ${line#*=} == "{"* ]]; then misused "$config_file: write [${1%%.*}] as a section of its own"; fi
    done <<<"$config_lines"
    if [[ $found == "["*"]" ]]; then found=${found:1:-1}; fi
    if [[ $found == *["[]{}"]* ]]; then misused "$config_file: write $1 on one line"; fi
    echo "$found"
}

behind_local_proxy() { [[ $(config listen 127.0.0.1:8080) =~ ^(127\.|\[::1\]) ]]; }

# --- CPUs -------------------------------------------------------------------------------------------------------------

each_cpu() { # LIST such as 0-3,8: one number per line, in the order of the list
    local run
    for run in ${1//,/ }; do
        [[ $run =~ ^[0-9]{1,4}(-[0-9]{1,4})?$ ]] || misused "'$1' is no list of CPUs such as 0-3,8-11"
        seq "${run%-*}" "${run#*-}"
    done
}

cpu_list() { # numbers in lines to a list such as 0-3,8
    sort -n | awk '
        function flush() { if (first != "") printf "%s%s", sep, (first == last ? first : first "-" last); sep = "," }
        first != "" && $1 == last + 1 { last = $1; next }
        { if (first != "") flush(); first = last = $1 }
        END { flush(); print "" }'
}

cpu_mask() { # numbers in lines to a mask such as ff,0000000f
    awk 'BEGIN { top = 0 }
        { word = int($1 / 32); bits[word] += 2 ^ ($1 % 32); if (word > top) top = word }
        END { printf "%x", bits[top]; for (word = top - 1; word >= 0; word--) printf ",%08x", bits[word]; print "" }'
}

without() { grep -vxF -f <(printf '%s\n' "$1" none) || true; } # LINES: standard input without these
among() { grep -xF -f <(printf '%s\n' "$1" none) || true; }    # LINES: those of standard input that are among these

online_cpus() { each_cpu "$(value /sys/devices/system/cpu/online || echo 0)"; }

# A shard's CPU in each line; none where shards are not pinned.
shard_cpus() {
    local cpus
    cpus=$(config cpus '')
    case ${cpus,,} in
        none) ;;
        '') online_cpus | head -n "$(shards)" ;;
        *) each_cpu "$cpus" | head -n "$(shards)" ;;
    esac
}

shards() {
    local cpus all
    cpus=$(config cpus '')
    case ${cpus,,} in
        '' | none) all=$(online_cpus | wc -l) ;;
        *) all=$(each_cpu "$cpus" | wc -l) ;;
    esac
    whole shards "$(config shards "$all")"
}

# CPUs for the network cards' interrupts: those that neither a shard nor the control thread has; where there are none, the
# shards' own, so that queue 0 is served where shard 0 runs. Of those, the ones near the card, if there are any.
irq_cpus() { # NODE
    local busy free near
    busy=$(shard_cpus)
    [[ $busy ]] || return 0
    free=$(online_cpus | without "$busy"$'\n'"$(config control_cpu none)")
    if [[ -z $free ]]; then free=$(online_cpus | among "$busy"); fi
    near=$(each_cpu "$(value "/sys/devices/system/node/node$1/cpulist" || true)" | among "$free")
    echo "${near:-$free}"
}

# --- network cards ----------------------------------------------------------------------------------------------------

cards() { # names of the interfaces with a device behind them
    local path
    for path in $(matching '/sys/class/net/*/device'); do basename "${path%/device}"; done
}

card_node() { # CARD: its NUMA node, -1 where there is none
    value "/sys/class/net/$1/device/numa_node" || value "/sys/class/net/$1/device/../numa_node" || echo -1
}

# IRQ and queue of each queue's interrupt; those for configuration and events carry no traffic.
card_irqs() { # CARD
    local irqs
    irqs=$(matching "/sys/class/net/$1/device/msi_irqs/*")
    if [[ -z $irqs ]]; then irqs=$(matching "/sys/class/net/$1/device/../msi_irqs/*"); fi
    awk -v irqs="${irqs//$'\n'/ }" '
        BEGIN { n = split(irqs, paths, " "); for (i = 1; i <= n; i++) { sub(/.*\//, "", paths[i]); ours[paths[i] ":"] = 1 } }
        $1 in ours && $NF !~ /config|async|event|admin|mgmt|mgnt|misc|control/ {
            queue = $NF
            sub(/@.*/, "", queue); if (queue !~ /[0-9]$/) next
            sub(/.*[^0-9]/, "", queue)
            print $1 + 0, queue + 0
        }' "$root/proc/interrupts" 2>/dev/null || true
}

# --- systemd ----------------------------------------------------------------------------------------------------------

drop_in=/etc/systemd/system/shardgate.service.d/90-shardgate.conf

unit_file() {
    local folder
    for folder in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
        if [[ -e $root$folder/shardgate.service ]]; then echo "$folder/shardgate.service" && return; fi
    done
}

# What the unit allows itself, and what our drop-in makes of it.
own_limit() { limit_in "$1" "$(unit_file)"$'\n'"$(matching "${drop_in%/*}/*.conf" | without "$drop_in")"; } # KEY
unit_limit() { limit_in "$1" "$(unit_file)"$'\n'"$(matching "${drop_in%/*}/*.conf")"; }                     # KEY

limit_in() { # KEY PATHS: what the last of them says; KEY|KEY for two that mean it
    local path said limit
    case $1 in # systemd's own
        LimitNOFILE) limit=524288 ;;
        LimitMEMLOCK) limit=8M ;;
        TimeoutStopSec*) limit=90s ;;
    esac
    while read -r path; do
        [[ $path && -r $root$path ]] || continue
        said=$(sed -nE "s/^[[:space:]]*($1)=//p" "$root$path" | tail -n 1)
        limit=${said:-$limit}
    done <<<"$2"
    # Of soft:hard the hard one, as the gateway raises the soft one.
    echo "${limit##*:}"
}

# Seconds, rounded up, of a time as the gateway or systemd writes it: 500ms, 30s, 2m, 1min 30s, 45; 0 of systemd is for ever.
seconds() { # NAME TIME
    local left=${2// /} total=0
    if [[ $left == infinity || $left == 0 ]]; then echo infinity && return; fi
    while [[ $left =~ ^([0-9]{1,9})([a-z]*)(.*)$ ]]; do
        case ${BASH_REMATCH[2]} in
            ms | msec) total=$((total + (10#${BASH_REMATCH[1]} + 999) / 1000)) ;;
            '' | s | sec | second | seconds) total=$((total + 10#${BASH_REMATCH[1]})) ;;
            m | min | minute | minutes) total=$((total + 10#${BASH_REMATCH[1]} * 60)) ;;
            h | hr | hour | hours) total=$((total + 10#${BASH_REMATCH[1]} * 3600)) ;;
            *) break ;;
        esac
        left=${BASH_REMATCH[3]}
    done
    [[ -z $left ]] || misused "$1 is a time such as 30s, not '$2'"
    echo $total
}

bytes() { # SIZE as systemd writes it: 512M
    case $1 in
        *K) echo $((${1%K} << 10)) ;;
        *M) echo $((${1%M} << 20)) ;;
        *G) echo $((${1%G} << 30)) ;;
        *) echo "$1" ;;
    esac
}

hard_limit() { # NAME: of this shell, in files or bytes
    awk -v name="$1" 'index($0, name) == 1 { print $(NF - 1) }' "$root/proc/self/limits" 2>/dev/null || true
}

enough() { # LIMIT NEEDED
    case $1 in
        unlimited | infinity) return 0 ;;
        '' | *[!0-9]*) return 1 ;;
        *) (($1 >= $2)) ;;
    esac
}
