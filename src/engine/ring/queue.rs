//! The io_uring itself: set-up, submission, completions. Knows operations, not sockets.
//!
//! Owned by the shard's engine. `SINGLE_ISSUER` ties it to the thread that made it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::super::sys::check;
use super::buffers::{BUFFERS, Buffers};

/// Submissions collected before they must leave early. 1,024 x 64 bytes; a turn with more makes one
/// more system call per 1,024.
const SUBMISSIONS: u32 = 1024;

/// Completions the kernel can store without allocating: 16,384 x 16 bytes, several for each
/// submission of a busy turn.
const COMPLETIONS: u32 = 16 * SUBMISSIONS;

/// The only group of provided buffers.
const BUFFER_GROUP: u16 = 0;

// From linux/io_uring.h; the io-uring crate keeps them to itself.
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GeteventsArg {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_usec: u32,
    timeout: u64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// One completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// False when the operation is over: nothing is armed any more.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The buffer that the kernel picked; it is lent until it is given back.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

pub(super) struct Queue {
    ring: IoUring,
    /// Index of the registered descriptor, which spares the kernel a look-up per call.
    registered: Option<u32>,
    /// Submissions that did not fit, because the kernel could not take any for a moment.
    backlog: Vec<squeue::Entry>,
    syscalls: u64,
}

/// The kernel takes rings down after their process has ended, and counts their memory until then.
/// So a gateway that is started again at once finds its own memlock used for some milliseconds.
const PREDECESSOR_GOES: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Makes a ring; at the start only, as it may wait.
fn when_there_is_memory<R>(make: impl Fn() -> io::Result<R>) -> io::Result<R> {
    let until = Instant::now() + PREDECESSOR_GOES;
    loop {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && Instant::now() < until => {
                std::thread::sleep(TRY_AGAIN);
            }
            made => return made,
        }
    }
}

/// Names the step of the set-up that failed; any of them means "use the other engine". An error of
/// a limit or a permission keeps its kind, so that its remedy is printed with it.
pub(super) fn unsupported(step: &str, error: &io::Error) -> io::Error {
    if let Some(code @ (libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EPERM | libc::EACCES)) = error.raw_os_error()
    {
        return io::Error::from_raw_os_error(code);
    }
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("io_uring is not usable here: {step}: {error}"),
    )
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        let ring = when_there_is_memory(Self::make)
            .map_err(|error| unsupported("io_uring_setup with DEFER_TASKRUN (Linux 6.1)", &error))?;
        let features = [
            (ring.params().is_feature_ext_arg(), "EXT_ARG"),
            (ring.params().is_feature_nodrop(), "NODROP"),
        ];
        for (present, name) in features {
            if !present {
                return Err(unsupported(name, &io::ErrorKind::Unsupported.into()));
            }
        }
        let mut queue = Queue {
            ring,
            registered: None,
            backlog: Vec::new(),
            syscalls: 0,
        };
        queue.register_ring();
        Ok(queue)
    }

    fn make() -> io::Result<IoUring> {
        IoUring::builder()
            // One thread submits and reaps, and completions are worked off only when it asks: no
            // interrupts of a turn.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            // Says in shared memory that there is something to ask for, so that an empty turn needs
            // no system call.
            .setup_taskrun_flag()
            // One bad submission does not hold up those behind it.
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
    }

    /// Registers the ring's own descriptor. That the kernel declines (16 per thread) only costs a
    /// little time.
    fn register_ring(&mut self) {
        let mut update = RingFdUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: self.ring.as_raw_fd() as u64,
        };
        if self.register(REGISTER_RING_FDS, &mut update).is_ok() {
            self.registered = Some(update.offset);
        }
    }

    fn register(&self, operation: libc::c_uint, update: &mut RingFdUpdate) -> io::Result<()> {
        // SAFETY: `update` is one live `io_uring_rsrc_update`, and the count is 1. The kernel does
        // not keep the pointer. `leaks_no_descriptor` would break, as a ring stays open while it is
        // registered.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.ring.as_raw_fd(),
                operation,
                std::ptr::from_mut(update),
                1,
            )
        };
        check(result as libc::c_int).map(drop)
    }

    /// Gives the kernel the pool that receives pick from.
    ///
    /// # Safety
    /// The pool must stay mapped until this queue is dropped with nothing in flight.
    pub(super) unsafe fn register_buffers(&self, buffers: &Buffers) -> io::Result<()> {
        // SAFETY: the caller's promise; the address is that of a list of `BUFFERS` entries.
        unsafe {
            self.ring
                .submitter()
                .register_buf_ring_with_flags(buffers.list_addr(), BUFFERS, BUFFER_GROUP, 0)
        }
        .map_err(|error| unsupported("ring of provided buffers (Linux 5.19)", &error))
    }

    /// Registers an eventfd that completions notify. It is silent until [`Queue::set_notify`].
    pub(super) fn register_eventfd(&mut self, eventfd: RawFd) -> io::Result<()> {
        self.set_notify(false);
        self.ring
            .submitter()
            .register_eventfd(eventfd)
            .map_err(|error| unsupported("registered eventfd", &error))
    }

    /// Whether completions notify the eventfd.
    pub(super) fn set_notify(&mut self, on: bool) {
        let completions = self.ring.completion();
        if on {
            completions.enable_eventfd();
        } else {
            completions.disable_eventfd();
        }
    }

    pub(super) fn syscalls(&self) -> u64 {
        self.syscalls
    }

    /// Accepts one connection. The kernel keeps the limit of descriptors as it is now, also if it
    /// is changed later.
    pub(super) fn accept(&mut self, listener: RawFd, user_data: u64) {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let null: *mut libc::sockaddr = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener), null, null.cast())
            .flags(flags)
            .build();
        self.push(entry.user_data(user_data));
    }

    /// Receives once, into a buffer that the kernel picks when there are bytes.
    pub(super) fn receive_once(&mut self, socket: RawFd, user_data: u64) {
        let entry = opcode::Recv::new(Fd(socket), std::ptr::null_mut(), 0)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(user_data));
    }

    /// Receives until the end of the socket, or of the buffers.
    pub(super) fn receive_stream(&mut self, socket: RawFd, user_data: u64) {
        let entry = opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP).build();
        self.push(entry.user_data(user_data));
    }

    /// Sends all of `bytes`, waiting for room as often as it takes.
    ///
    /// # Safety
    /// The bytes must stay where they are, unchanged, until the completion.
    pub(super) unsafe fn send(&mut self, socket: RawFd, bytes: &[u8], user_data: u64) {
        // `Sends::rest` keeps the length far below 2^32.
        let entry = opcode::Send::new(Fd(socket), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(entry.user_data(user_data));
    }

    /// Completes each time that a descriptor becomes readable.
    pub(super) fn watch(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(user_data));
    }

    /// Cancels every operation with these `user_data`.
    pub(super) fn cancel(&mut self, what: u64, user_data: u64) {
        let builder = CancelBuilder::user_data(what).all();
        self.push(opcode::AsyncCancel2::new(builder).build().user_data(user_data));
    }

    /// Cancels whatever is in flight.
    pub(super) fn cancel_all(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.push(entry.user_data(user_data));
    }

    /// Collects a submission. Submissions that did not fit stay in order behind each other.
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            if self.try_push(&entry) {
                return;
            }
            // Full: these leave early. No `GETEVENTS`, so this reaps nothing and starts nothing
            // else.
            let _ = self.call_enter(0, 0, None);
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.push(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the only pointers in entries made above are those of `send`, whose caller keeps
        // the bytes alive; descriptors stay open until their operations have completed
        // (`drops_with_operations_in_flight` would break).
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn flush_backlog(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        let mut rest = backlog.into_iter();
        for entry in rest.by_ref() {
            if !self.try_push(&entry) {
                let _ = self.call_enter(0, 0, None);
                if !self.try_push(&entry) {
                    self.backlog.push(entry);
                    break;
                }
            }
        }
        self.backlog.extend(rest);
    }

    /// True if [`Queue::enter`] would do something, or [`Queue::pop`] give something.
    pub(super) fn has_work(&mut self) -> bool {
        !self.backlog.is_empty() || self.must_enter() || self.has_completions()
    }

    /// True if [`Queue::pop`] would give something.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    fn must_enter(&mut self) -> bool {
        let submissions = self.ring.submission();
        !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    /// Submits and reaps; with `wait`, until there is a completion or the time is over.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.flush_backlog();
        }
        let result = match wait.filter(|wait| !wait.is_zero()) {
            None if !self.must_enter() => return Ok(()),
            None => self.call_enter(0, ENTER_GETEVENTS, None),
            Some(wait) => {
                let timeout = Timespec::from(wait);
                self.call_enter(1, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&timeout))
            }
        };
        passing(result)
    }

    /// Submits, and reaps nothing.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.flush_backlog();
        }
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        passing(self.call_enter(0, 0, None))
    }

    fn call_enter(&mut self, min_complete: u32, mut flags: u32, timeout: Option<&Timespec>) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        let arg = GeteventsArg {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_usec: 0,
            timeout: timeout.map_or(0, |timeout| std::ptr::from_ref(timeout) as u64),
        };
        let (arg, arg_bytes) = if timeout.is_some() {
            (std::ptr::from_ref(&arg), size_of::<GeteventsArg>())
        } else {
            (std::ptr::null(), 0)
        };
        let fd = match self.registered {
            Some(index) => {
                flags |= ENTER_REGISTERED_RING;
                index as libc::c_int
            }
            None => self.ring.as_raw_fd(),
        };
        self.syscalls += 1;
        // SAFETY: `arg` is null with length 0, or one live `io_uring_getevents_arg` whose timeout
        // is alive as well. The kernel keeps neither. The callers of `try_push` promise that the
        // pointers in the submissions are good.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                to_submit,
                min_complete,
                flags,
                arg,
                arg_bytes,
            )
        };
        check(result as libc::c_int).map(drop)
    }

    /// The next completion, if there is one in memory.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        Some(Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        })
    }
}

/// Takes errors that are no fault of the ring for success: submissions that were not taken stay
/// queued.
fn passing(result: io::Result<()>) -> io::Result<()> {
    match result.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(()),
        // A signal; the time is over; memory is short; completions must be taken first. All pass.
        Err((Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::ENOMEM | libc::EBUSY), _)) => Ok(()),
        Err((_, error)) => Err(error),
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A registered ring is held by the thread, and with it every socket in flight, until the
        // thread ends.
        if let Some(offset) = self.registered {
            let mut update = RingFdUpdate {
                offset,
                reserved: 0,
                data: 0,
            };
            let _ = self.register(UNREGISTER_RING_FDS, &mut update);
        }
    }
}
