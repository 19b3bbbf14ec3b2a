//! Completions that come only when the host is out of resources. A test cannot bring it there, as
//! root is exempt from `fs.file-max`. So a completion is changed on its way from the queue.

use super::super::tests::{Bed, Seen, ring_usable};
use super::*;

impl Bed<RingEngine> {
    /// The next accept to complete, as if it had failed.
    fn fail_accept(&mut self, errno: i32) -> Option<Event<'static>> {
        let mut completion = loop {
            self.engine.turn(Some(DROP_WAIT)).unwrap();
            if let Some(completion) = self.engine.queue.pop() {
                break completion;
            }
        };
        assert_eq!(kind_of(completion.user_data), ACCEPT);
        // SAFETY: the kernel made this descriptor for us, and the engine is not notified of it.
        drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
        completion.result = -errno;
        match self.engine.complete(completion)? {
            Found::Other(event) => Some(event),
            Found::Received { key, .. } => panic!("bytes for {key:?}"),
        }
    }
}

#[test]
fn pauses_accepting_when_the_host_has_nothing_left() {
    if !ring_usable() {
        return;
    }
    let mut bed = Bed::<RingEngine>::new();
    let mut clients = Vec::new();
    for errno in [libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EMFILE] {
        clients.push(bed.connect());
        match bed.fail_accept(errno) {
            Some(Event::AcceptPaused { error }) => assert_eq!(error.raw_os_error(), Some(errno)),
            other => panic!("{other:?}"),
        }
        // The other accepts end, and none is made, even with clients waiting; nor does it spin.
        bed.nothing();
        clients.push(bed.connect());
        bed.nothing();
        assert_eq!(bed.engine.accepts, 0);
        bed.engine.resume_accept();
        assert!(matches!(bed.next(), Seen::Accepted(_)));
    }
}

/// These are about one connection, which has gone.
#[test]
fn goes_on_accepting_when_a_connection_has_gone() {
    if !ring_usable() {
        return;
    }
    let mut bed = Bed::<RingEngine>::new();
    let mut clients = Vec::new();
    for errno in [libc::ECONNABORTED, libc::EINTR, libc::EAGAIN] {
        clients.push(bed.connect());
        assert!(bed.fail_accept(errno).is_none());
        clients.push(bed.pair().0);
        assert_eq!(bed.engine.accepts + usize::from(bed.engine.accept_due), ACCEPTS_MAX);
    }
}
