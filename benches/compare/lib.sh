#!/usr/bin/env bash
# What the comparisons share: processes, ports and binaries. Sourced, from the root of the repository.

target=${CARGO_TARGET_DIR:-target}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The comment at the head of the script, for whoever gets its flags wrong.
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}

# Cargo puts a hash into the name of a bench; the newest is the one just built.
newest_bench() {
    local file newest=''
    for file in "$target/release/deps/$1"-*; do
        if [[ -x $file && $file != *.d && (-z $newest || $file -nt $newest) ]]; then
            newest=$file
        fi
    done
    [[ $newest ]] || die "$1 is not built"
    echo "$newest"
}

# Ends a child of ours and waits for it: asked first, killed after five seconds.
end_process() {
    local pid=$1 signal=${2:-TERM} deadline=$((SECONDS + 5))
    kill -s "$signal" "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do
        sleep 0.05
    done
    kill -s KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

# Whether somebody listens on this port of ours.
listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Waits until COMMAND is true; process PID must live meanwhile.
wait_for() { # WHAT PID LOG COMMAND...
    local what=$1 pid=$2 log=$3 deadline=$((SECONDS + ${WAIT_MAX:-20}))
    shift 3
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || die "$what ended at once: $(tail -n 5 "$log")"
        ((SECONDS < deadline)) || die "$what is not ready: $(tail -n 5 "$log")"
        sleep 0.05
    done
}
