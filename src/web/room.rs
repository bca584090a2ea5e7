//! Limits the connections: decides which one is closed to make room for a new one.
//!
//! Promises: at most so many connections at once, and [`CLIENT_CONNECTIONS_MAX`] of one client. A new one takes the
//! place of the longest idle one; if every place has a request under way, it waits for one.
//!
//! Leaves to others: what a connection does (`listen.rs`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most connections at once, over all listeners.
pub const CONNECTIONS_MAX: usize = 512;
/// Most connections at once of one client: an IPv4 address, or an IPv6 network of 64 bits.
pub const CLIENT_CONNECTIONS_MAX: usize = 64;
/// Most connections that wait for a place, or are being told that there is none. More are closed at once.
pub const WAITING_MAX: usize = 64;
/// How long after an answer the next request may begin, or that answer be taken. Twice the usual
/// longest scrape interval, so that Prometheus can keep its connection.
pub const IDLE_MAX: Duration = Duration::from_mins(2);
/// How often the log says that connections made room for others.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// The connections there are, by number. None is let in over the limits without another leaving.
pub(super) struct Room {
    /// Most connections at once.
    connections_max: usize,
    guests: Mutex<Guests>,
    /// Told whenever a place may have become free.
    freed: Arc<Notify>,
    /// Held by each that waits.
    waiting: Arc<()>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    all: BTreeMap<u64, Guest>,
    /// When the log last said that a connection had to leave.
    told: Option<Instant>,
    /// When the log last said that the system has no more descriptors.
    told_of_files: Option<Instant>,
}

struct Guest {
    client: IpAddr,
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
    pub(super) activity: Arc<Activity>,
    /// Cancelled when the place was given to another connection.
    pub(super) leave: CancellationToken,
}

impl Room {
    pub(super) fn new(connections_max: usize) -> Self {
        Self { connections_max, guests: Mutex::default(), freed: Arc::default(), waiting: Arc::new(()) }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets another connection wait, as long as it holds the ticket; `None` if too many wait already.
    pub(super) fn wait(&self) -> Option<Arc<()>> {
        (Arc::strong_count(&self.waiting) <= WAITING_MAX).then(|| Arc::clone(&self.waiting))
    }

    /// A place for a new connection, as soon as there is one.
    pub(super) async fn place(self: &Arc<Self>, peer: SocketAddr) -> Place {
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(place) = self.admit(peer) {
                return place;
            }
            freed.await;
        }
    }

    /// The system has no more descriptors: the longest idle connection makes room. Returns how long to wait for that.
    pub(super) fn out_of_files(&self, error: &io::Error) -> Duration {
        let mut guests = self.guests();
        if guests.told_of_files.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            guests.told_of_files = Some(Instant::now());
            tracing::warn!(%error, connections = guests.all.len(), "cannot accept a connection");
        }
        if guests.longest_idle_leaves(|_| true).is_some() { Duration::from_millis(20) } else { Duration::from_secs(1) }
    }

    /// A place for a new connection. Where its client has as many as one may have, another one of
    /// that client makes room; where all places are taken, one of the client that has most of them.
    /// Of these it is the one that has longest had nothing to do. `None` if each has a request
    /// under way.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let client = client(peer.ip());
        let mut guests = self.guests();
        let mut by_client: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for guest in guests.all.values() {
            *by_client.entry(guest.client).or_default() += 1;
        }
        let crowd = if by_client.get(&client).is_some_and(|places| *places >= CLIENT_CONNECTIONS_MAX) {
            Some(client)
        } else if guests.all.len() >= self.connections_max {
            by_client.into_iter().max_by_key(|(_, places)| *places).map(|(client, _)| client)
        } else {
            None
        };
        if let Some(crowd) = crowd {
            if guests.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                guests.told = Some(Instant::now());
                tracing::warn!(
                    client = %crowd,
                    connections = guests.all.len(),
                    "too many connections: the ones that are idle or slow for longest are closed to admit new ones"
                );
            }
            guests.longest_idle_leaves(|guest| guest.client == crowd)?;
        }
        let number = guests.next;
        guests.next += 1;
        let (activity, leave) = (Arc::new(Activity::new(Arc::clone(&self.freed))), CancellationToken::new());
        let guest = Guest { client, activity: Arc::clone(&activity), leave: leave.clone() };
        guests.all.insert(number, guest);
        Some(Place { room: Arc::clone(self), number, activity, leave })
    }
}

impl Guests {
    /// Of some connections, the one that has longest had nothing to do leaves. `None` if each has a request under way.
    fn longest_idle_leaves(&mut self, of: impl Fn(&Guest) -> bool) -> Option<()> {
        let some = self.all.iter().filter(|(_, guest)| of(guest));
        let idle = some.filter_map(|(number, guest)| Some((guest.activity.idle_since()?, *number)));
        let (_, number) = idle.min()?;
        self.all.remove(&number)?.leave.cancel();
        Some(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.guests().all.remove(&self.number);
        self.room.freed.notify_waiters();
    }
}

/// The client an address belongs to. An IPv6 client has all 2^64 addresses of its network.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// When a connection last had something to do.
pub(super) struct Activity {
    opened: Instant,
    doing: Mutex<Doing>,
    /// Told when a request is no longer under way: then the connection may leave for another.
    freed: Arc<Notify>,
}

#[derive(Clone, Copy)]
struct Doing {
    /// Requests whose answer has not begun.
    under_way: usize,
    /// When a request last began or its answer did; `None` before the first.
    latest: Option<Instant>,
}

impl Activity {
    fn new(freed: Arc<Notify>) -> Self {
        Self { opened: Instant::now(), doing: Mutex::new(Doing { under_way: 0, latest: None }), freed }
    }

    fn change(&self, change: impl FnOnce(&mut Doing)) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut doing);
        doing.latest = Some(Instant::now());
    }

    /// When the connection will have been idle too long; `None` if it never had a request.
    pub(super) fn idle_until(&self) -> Option<Instant> {
        let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = if doing.under_way > 0 { Some(Instant::now()) } else { doing.latest };
        since.map(|since| since + IDLE_MAX)
    }

    /// Since when the connection could be closed with least loss; `None` while a request is under
    /// way. A client that reads an answer slowly counts as idle since the answer began.
    fn idle_since(&self) -> Option<Instant> {
        let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        (doing.under_way == 0).then(|| doing.latest.unwrap_or(self.opened))
    }
}

/// One request under way, also if its handler is dropped.
pub(super) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        activity.change(|doing| doing.under_way += 1);
        Self(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|doing| doing.under_way -= 1);
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
