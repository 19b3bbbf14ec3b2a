//! The few system calls that std does not offer, behind safe functions.
//!
//! None of them keeps a pointer beyond the call; memory that outlives a call (buffers of the ring)
//! is in `ring`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::SockRef;

/// Turns the `-1` of a system call into an error.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// As [`check`], for calls that return a length.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A counter that a wake is written to; non-blocking, closed on exec.
pub(super) fn eventfd(initial: u32) -> io::Result<File> {
    // SAFETY: no pointers; the result is checked before it is owned (every test makes one).
    let fd = check(unsafe { libc::eventfd(initial, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was just made and has no other owner; `leaks_no_descriptor` would break.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Makes an eventfd readable. Cannot fail while fewer than 2^64 wakes are outstanding.
pub(super) fn notify(mut eventfd: &File) {
    let _ = eventfd.write(&1u64.to_ne_bytes());
}

/// Makes an eventfd unreadable again. That nothing was in it is fine.
pub(super) fn drain(mut eventfd: &File) {
    let _ = eventfd.read(&mut [0; 8]);
}

/// Accepts one connection without waiting, non-blocking and closed on exec.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: null pointers mean that the address is not wanted (`accepts` would break).
    let fd = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: `fd` was just made and has no other owner; `leaks_no_descriptor` would break.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives the bytes that are there, without waiting.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are of one live, exclusively borrowed slice
    // (`receives_a_stream` would break).
    check_len(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

/// Sends what fits, without waiting and without SIGPIPE.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are of one live slice, only read (`sends_to_a_slow_peer` would
    // break).
    check_len(unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// Ends one or both sides of a socket.
pub(super) fn shutdown(socket: &OwnedFd, how: Shutdown) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).shutdown(how)
}

/// Makes closing this socket a reset of its connection.
pub(super) fn reset_on_close(socket: &OwnedFd) -> io::Result<()> {
    SockRef::from(&socket.as_fd()).set_linger(Some(Duration::ZERO))
}

/// Bytes in the socket's send queue that the peer has not acknowledged.
pub(super) fn unacknowledged(socket: &OwnedFd) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to a live, exclusively borrowed int
    // (`bytes_nobody_reads_are_known` would break).
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }).ok()?;
    usize::try_from(bytes).ok()
}

/// Address of the peer, if the socket has one.
pub(super) fn peer_addr(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(&socket.as_fd()).peer_addr().ok()?.as_socket()
}
