//! Who may connect at once: so many in all, and so many of one address, so that none can keep all others out.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Places for connections, counted by address.
#[derive(Debug)]
pub struct Places {
    all: usize,
    each: usize,
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A connection's place. Given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    of: IpAddr,
}

impl Places {
    /// So many in all, and so many for each address.
    #[must_use]
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    /// A place for a connection from there; `None`: there is none left.
    #[must_use]
    pub fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let of = from.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.all {
            return None;
        }
        let of_one = taken.entry(of).or_default();
        if *of_one >= self.each {
            return None;
        }
        *of_one += 1;
        Some(Place { places: Arc::clone(self), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.of) {
            *of_one = of_one.saturating_sub(1);
            if *of_one == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_takes_its_share_and_leaves_the_rest_to_others() {
        let places = Places::new(5, 2);
        let held: Vec<Place> = (0..2).filter_map(|_| places.take(address("10.0.0.1"))).collect();
        assert_eq!(held.len(), 2);
        assert!(places.take(address("10.0.0.1")).is_none());
        assert!(places.take(address("::ffff:10.0.0.1")).is_none(), "the same one");
        let six = places.take(address("fd00::1")).unwrap();
        let _others = ["fd00::1", "fd00::2"].map(|one| places.take(address(one)).unwrap());
        assert!(places.take(address("10.0.0.9")).is_none(), "all are taken");
        drop(six);
        assert!(places.take(address("10.0.0.9")).is_some());
    }
}
