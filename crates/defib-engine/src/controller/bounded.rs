//! Commands that the log takes: it drops an entry above 4 MiB, and a plan for many thousand VMs, with the
//! reason for each,
//! is longer than that. So the first part is proposed, in the order of start, and the rest is planned anew after it.

use alloc::string::String;
use alloc::vec::Vec;

use defib_model::command::{Placement, Unplaced};

/// So many bytes of text at most, as they are in memory: the encoding makes up to six times as many of them,
/// where names
/// are short and there is much between them. One VM goes by itself, however long its text is.
const TEXT_MAX: usize = 512 << 10;
/// What an item takes beside its text.
const EACH: usize = 128;

fn length(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 8).sum()
}

/// Leaves what fits into `room`, and takes it off; whether that is all.
fn keep<T>(items: &mut Vec<T>, room: &mut usize, length: impl Fn(&T) -> usize) -> bool {
    let mut kept = 0;
    for item in items.iter() {
        let Some(left) = room.checked_sub(EACH + length(item)) else { break };
        *room = left;
        kept += 1;
    }
    let whole = kept == items.len();
    items.truncate(kept);
    whole
}

/// Leaves of a plan what one command may hold; whether that is all of it.
pub(super) fn bounded(placements: &mut Vec<Placement>, unplaced: &mut Vec<Unplaced>) -> bool {
    let mut room = TEXT_MAX;
    let (placed, left) = (placements.first().cloned(), unplaced.first().cloned());
    let whole = keep(placements, &mut room, |one| {
        one.vm.as_str().len() + one.host.as_str().len() + one.because.len() + length(&one.broken)
    });
    if placements.is_empty() {
        placements.extend(placed);
    }
    if !whole {
        // Those come before: what has no place now may have one after them.
        unplaced.clear();
        return false;
    }
    let told = keep(unplaced, &mut room, |one| one.vm.as_str().len() + length(&one.reasons));
    if placements.is_empty() && unplaced.is_empty() {
        unplaced.extend(left);
    }
    told
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use defib_model::{Command, Epoch, HostId, Incarnation, VmId};

    use super::*;

    const ENTRY_MAX: usize = 4 << 20;

    fn placement(number: usize, broken: &str) -> Placement {
        Placement {
            vm: VmId::new(&format!("vm-{number}")).unwrap(),
            host: HostId::new("h1").unwrap(),
            incarnation: Incarnation(1),
            host_epoch: Epoch(1),
            because: String::from("most room left"),
            broken: vec![broken.into()],
        }
    }

    fn unplaced(number: usize, reason: &str) -> Unplaced {
        Unplaced { vm: VmId::new(&format!("vm-{number}")).unwrap(), reasons: vec![reason.into()] }
    }

    fn encoded(placements: &[Placement], unplaced: &[Unplaced]) -> usize {
        let (placements, unplaced) = (placements.to_vec(), unplaced.to_vec());
        serde_json::to_vec(&Command::Place { placements, unplaced }).unwrap().len()
    }

    #[test]
    fn a_plan_of_any_length_is_proposed_in_parts_that_the_log_takes_with_nothing_lost_and_in_order() {
        for text in ["", "a group that can't be kept apart", &"x".repeat(800), &"\u{1}".repeat(300)] {
            let all: Vec<_> = (0..30_000).map(|number| placement(number, text)).collect();
            let without: Vec<_> = (0..10_000).map(|number| unplaced(number, text)).collect();
            let (mut placed, mut told, mut parts) = (Vec::new(), Vec::new(), 0);
            while placed.len() < all.len() || told.len() < without.len() {
                let (mut some, mut left) = (all[placed.len()..].to_vec(), without[told.len()..].to_vec());
                let whole = bounded(&mut some, &mut left);
                assert!(encoded(&some, &left) < ENTRY_MAX, "{}", encoded(&some, &left));
                assert!(!some.is_empty() || !left.is_empty(), "it must go on");
                placed.extend(some);
                told.extend(left);
                assert_eq!(whole, placed.len() == all.len() && told.len() == without.len());
                parts += 1;
            }
            assert!(placed == all && told == without && parts > 1);
        }
    }

    #[test]
    fn what_fits_is_proposed_as_it_is_and_one_vm_with_endless_reasons_by_itself() {
        let (mut some, mut left) = (vec![placement(1, ""), placement(2, "x")], vec![unplaced(3, "full")]);
        assert!(bounded(&mut some, &mut left));
        assert_eq!((some.len(), left.len()), (2, 1));
        let endless = "x".repeat(2 << 20);
        let (mut some, mut left) =
            (vec![placement(1, &endless), placement(2, "")], vec![unplaced(3, "full")]);
        assert!(!bounded(&mut some, &mut left));
        assert_eq!((some.len(), left.len()), (1, 0));
        let (mut some, mut left) = (Vec::new(), vec![unplaced(1, &endless), unplaced(3, "full")]);
        assert!(!bounded(&mut some, &mut left));
        assert_eq!((some.len(), left.len()), (0, 1));
    }
}
