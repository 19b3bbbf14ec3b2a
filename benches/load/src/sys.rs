//! The generator's system calls beside reading and writing: sockets, pinning, limits, time.
//!
//! Duty: thin, checked wrappers; everything else in the generator is free of `unsafe`.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

/// Descriptors beside the connections: standard streams, epoll, eventfds, /proc and report files.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The run's clock: nanoseconds since it was started. Copied to every thread, and every process of
/// this machine.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Clock {
    started_ns: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            started_ns: clock_ns(ClockId::Monotonic),
        }
    }

    pub(crate) fn now_ns(self) -> u64 {
        clock_ns(ClockId::Monotonic) - self.started_ns
    }
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The source address of connection `number`, when several are in use: 127.0.0.2 and up.
pub(crate) fn source_address(number: usize, sources: usize) -> Option<Ipv4Addr> {
    (sources > 1).then(|| Ipv4Addr::new(127, 0, 0, 2 + (number % sources) as u8))
}

/// Opens a socket and begins to connect it; it is writable once that is decided.
///
/// # Errors
/// The bytes that the kernel has, with no wait for the peer.
pub(crate) fn begin_connect(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        bind_address_no_port(&socket)?;
        rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V4(source), 0))?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Leaves the choice of the port to `connect`: `bind` would take one that is free for every peer,
/// and run out early.
fn bind_address_no_port(socket: &OwnedFd) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the value is an int that lives across the call, with its
    // size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the calling thread, and those it starts, run on `cpus` only.
///
/// # Errors
/// The kernel refuses: no such CPU, or not one of ours.
pub(crate) fn pin(cpus: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("--cpus: cannot run on {cpus:?}: {error}"))
}

/// Wakes timers of this thread when they are due, not up to 50 µs later as is the default.
pub(crate) fn exact_timers() {
    // Refused only by old kernels, and then sends are a little late, which the report shows.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu_ns() -> u64 {
    clock_ns(ClockId::ThreadCPUTime)
}

/// A file in memory that has no name, empty.
///
/// # Errors
/// The kernel gives no descriptor.
pub(crate) fn nameless_file(label: &CStr) -> io::Result<File> {
    // SAFETY: the label is a C string that lives across the call.
    let fd = unsafe { libc::memfd_create(label.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows its number.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes `file` so many words long and maps them, until the process ends. Every process that does
/// so sees the writes of all. Unwritten words are 0, and cost no memory.
///
/// # Errors
/// They do not fit.
pub(crate) fn share_words(file: &File, words: usize) -> io::Result<&'static [AtomicU64]> {
    let too_many = || io::Error::from(io::ErrorKind::OutOfMemory);
    let bytes = words.checked_mul(size_of::<AtomicU64>()).ok_or_else(too_many)?;
    file.set_len(bytes as u64)?;
    // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is so long and starts on a page of its own, thus aligned. It is never
    // unmapped, and no process makes the file shorter. All bits make a valid word, and every
    // writer, here or in another process, writes atomics.
    Ok(unsafe { std::slice::from_raw_parts(place.cast(), words) })
}

/// Raises the soft limit of descriptors, so that `connections` fit.
///
/// # Errors
/// They do not fit under the hard limit.
pub(crate) fn make_room_for(connections: usize) -> Result<(), String> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let needed = connections as u64 + DESCRIPTORS_RESERVED;
    if limit.current.is_none_or(|soft| soft >= needed) {
        return Ok(());
    }
    if let Some(hard) = limit.maximum.filter(|hard| *hard < needed) {
        return Err(format!(
            "--users {connections}: {needed} descriptors are needed, and the hard limit of this process is {hard} \
             (ulimit -Hn): {} connections fit. Raise it, or say --processes",
            hard.saturating_sub(DESCRIPTORS_RESERVED)
        ));
    }
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum.or(Some(needed)),
            maximum: limit.maximum,
        },
    )
    .map_err(|error| format!("cannot raise the limit of descriptors: {error}"))
}
