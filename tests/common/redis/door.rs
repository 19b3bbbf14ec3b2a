//! A name in front of several servers, as HAProxy, a Service or a primary endpoint is one. New
//! connections go to its present target; open connections stay.

use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::*;

/// Relays connections to servers that may change.
pub struct ListenerKind {
    port: u16,
    inside: Arc<Inside>,
}

#[derive(Default)]
struct Inside {
    /// In turn.
    ports: Mutex<Vec<u16>>,
    opened: AtomicUsize,
    closed: AtomicBool,
}

impl ListenerKind {
    #[track_caller]
    pub fn to(servers: &[&Redis]) -> ListenerKind {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inside = Arc::new(Inside::default());
        let door = ListenerKind {
            port,
            inside: Arc::clone(&inside),
        };
        door.lead_to(servers);
        std::thread::spawn(move || {
            for outer in listener.incoming().map_while(Result::ok) {
                if inside.closed.load(SeqCst) {
                    return;
                }
                let turn = inside.opened.fetch_add(1, SeqCst);
                let port = {
                    let ports = inside.ports.lock().unwrap();
                    ports[turn % ports.len()]
                };
                if let Ok(inner) = TcpStream::connect(("127.0.0.1", port)) {
                    relay(outer.try_clone().unwrap(), inner.try_clone().unwrap());
                    relay(inner, outer);
                }
            }
        });
        door
    }

    /// New connections go there, to several in turn.
    pub fn lead_to(&self, servers: &[&Redis]) {
        *self.inside.ports.lock().unwrap() = servers.iter().map(|server| server.port()).collect();
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Connections so far.
    pub fn opened(&self) -> usize {
        self.inside.opened.load(SeqCst)
    }
}

impl Drop for ListenerKind {
    fn drop(&mut self) {
        self.inside.closed.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}
