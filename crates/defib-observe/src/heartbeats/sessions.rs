//! The sessions that agents have opened, found by the number that a datagram carries.

use std::{collections::HashMap, hint::black_box};

use defib_engine::observer::Slot;
use defib_model::HostId;
use defib_wire::datagram::{
    DatagramError, Direction, OpeningSession, SealingSession, SessionSecret, peek_session,
};

/// What one connection of one host has agreed on.
pub(super) struct Session {
    pub(super) host: HostId,
    /// Where the observer keeps the host; `None` as long as it watches no such host.
    pub(super) slot: Option<Slot>,
    pub(super) opening: OpeningSession,
    pub(super) sealing: SealingSession,
}

/// Sessions lie in one row, and their places in a small table beside it: with thousands of hosts the row is larger
/// than the processor's cache, and [`Self::fetch`] can wait for many sessions at once where each beat would wait for
/// its own.
#[derive(Default)]
pub(super) struct Sessions {
    places: HashMap<u64, usize>,
    row: Vec<Session>,
}

impl Sessions {
    /// Adds a session, or takes another secret for one that is there.
    pub(super) fn open(&mut self, number: u64, host: HostId, slot: Option<Slot>, secret: &SessionSecret) {
        self.close(number);
        self.places.insert(number, self.row.len());
        let opening = OpeningSession::new(secret, number, Direction::ToReplica);
        let sealing = SealingSession::new(secret, number, Direction::ToAgent);
        self.row.push(Session { host, slot, opening, sealing });
    }

    /// Removes a session, if it is there.
    pub(super) fn close(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else { return };
        self.row.swap_remove(place);
        if let Some(moved) = self.row.get(place) {
            self.places.insert(moved.opening.session(), place);
        }
    }

    /// The sessions of a host: one, or more while it connects anew.
    pub(super) fn of<'a>(&'a mut self, host: &'a HostId) -> impl Iterator<Item = &'a mut Session> {
        self.row.iter_mut().filter(move |session| session.host == *host)
    }

    /// The place of the session that a datagram claims to be of. Nothing is authenticated yet.
    ///
    /// # Errors
    /// When it can't be a datagram of ours, or there is no such session.
    pub(super) fn find(&self, datagram: &[u8]) -> Result<usize, DatagramError> {
        let number = peek_session(datagram)?;
        self.places.get(&number).copied().ok_or(DatagramError::UnknownSession(number))
    }

    /// Brings what is at these places into the cache, all at once: no read here waits for another one.
    pub(super) fn fetch(&self, places: impl Iterator<Item = usize>) {
        let read = |session: &Session| {
            u64::from(session.slot.is_some()) ^ session.opening.session() ^ session.sealing.session()
        };
        black_box(places.filter_map(|place| self.row.get(place)).fold(0, |sum, session| sum ^ read(session)));
    }

    pub(super) fn at(&mut self, place: usize) -> Option<&mut Session> {
        self.row.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use defib_wire::datagram::DATAGRAM_LEN;
    use defib_wire::v1::Heartbeat;

    use super::*;

    fn secret(of: u8) -> SessionSecret {
        SessionSecret::from_bytes(&[of; 32]).unwrap()
    }

    fn datagram(number: u64, of: u8) -> [u8; DATAGRAM_LEN] {
        let mut buffer = [0; DATAGRAM_LEN];
        let mut sealing = SealingSession::new(&secret(of), number, Direction::ToReplica);
        sealing.seal(&Heartbeat::default(), &mut buffer).unwrap();
        buffer
    }

    fn host_of(sessions: &mut Sessions, number: u64, of: u8) -> Result<String, DatagramError> {
        let mut datagram = datagram(number, of);
        let place = sessions.find(&datagram)?;
        let session = sessions.at(place).unwrap();
        session.opening.open(&mut datagram)?;
        Ok(session.host.to_string())
    }

    #[test]
    fn each_session_is_found_under_its_number_whatever_was_closed_before() {
        let host = |number: u64| HostId::new(&format!("h{number}")).unwrap();
        let mut sessions = Sessions::default();
        for number in 1..=5 {
            sessions.open(number, host(number), None, &secret(number as u8));
        }
        for closed in [2, 5, 1, 1] {
            sessions.close(closed);
            assert_eq!(
                host_of(&mut sessions, closed, closed as u8),
                Err(DatagramError::UnknownSession(closed))
            );
        }
        for number in [3, 4] {
            assert_eq!(host_of(&mut sessions, number, number as u8).unwrap(), host(number).to_string());
        }
        // Opened anew by another host, with another secret.
        sessions.open(3, host(7), None, &secret(9));
        assert_eq!(host_of(&mut sessions, 3, 3), Err(DatagramError::Forged));
        assert_eq!(host_of(&mut sessions, 3, 9).unwrap(), "h7");
        assert_eq!(sessions.of(&host(3)).count(), 0);
        assert_eq!(sessions.of(&host(7)).count(), 1);
    }
}
