//! The way from the driver to the response, and how far along it the client is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use super::piece::Piece;

/// Pieces that wait for a client that reads slowly.
const WAITING: usize = 32;
/// A client that reads nothing for so long has left.
const SLOW_READER: Duration = Duration::from_secs(60);

/// What goes along the way, in order.
enum Item {
    /// With the completion tokens up to its end.
    Piece(Piece, u64),
    /// Answered when all that came before was given to the connection.
    Drain(oneshot::Sender<()>),
}

/// The driver's end.
pub struct Outlet {
    sender: Sender<Item>,
    delivered: Arc<AtomicU64>,
}

/// The response's end.
pub struct Pieces {
    receiver: Receiver<Item>,
    delivered: Arc<AtomicU64>,
    /// Completion tokens up to the piece that was taken last.
    taken: u64,
}

pub fn pieces() -> (Outlet, Pieces) {
    let (sender, receiver) = channel(WAITING);
    let delivered = Arc::<AtomicU64>::default();
    (Outlet { sender, delivered: delivered.clone() }, Pieces { receiver, delivered, taken: 0 })
}

impl Outlet {
    /// Sends a piece; `completion` counts the answer's tokens up to its end. False: the client has left.
    pub async fn send(&self, piece: Piece, completion: u64) -> bool {
        self.sender.send_timeout(Item::Piece(piece, completion), SLOW_READER).await.is_ok()
    }

    /// Waits until the connection has taken all that was sent. False: the client has left.
    pub async fn drain(&self) -> bool {
        let (done, drained) = oneshot::channel();
        let drain = async { self.sender.send(Item::Drain(done)).await.is_ok() && drained.await.is_ok() };
        tokio::time::timeout(SLOW_READER, drain).await.unwrap_or(false)
    }

    /// Completion tokens that the connection has taken.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Resolves when the client has left.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl Pieces {
    /// The next piece. Who asks for it has given the one before to the connection.
    pub async fn next(&mut self) -> Option<Piece> {
        self.delivered.store(self.taken, Ordering::Relaxed);
        loop {
            match self.receiver.recv().await? {
                Item::Piece(piece, completion) => {
                    self.taken = completion;
                    return Some(piece);
                }
                Item::Drain(done) => drop(done.send(())),
            }
        }
    }

    /// The next piece of an answer that is delivered as a whole, at its end.
    pub async fn gather(&mut self) -> Option<Piece> {
        loop {
            match self.receiver.recv().await? {
                Item::Piece(piece, _) => return Some(piece),
                Item::Drain(done) => drop(done.send(())),
            }
        }
    }
}
