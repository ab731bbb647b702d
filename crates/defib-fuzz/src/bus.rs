//! What others write to the topics that replicas read.

use std::collections::BTreeSet;

use arbitrary::Unstructured;
use defib_bmc::power_goes;
use defib_engine::observer::{Beat, BusBeat, Extent, Heed, HostView, Observer, Partition, Place};
use defib_model::{BootId, Epoch, HostId, Instant, Millis, Opinion, Policy, ReplicaId};
use defib_wire::{
    bus::{BmcEvent, BmcSaid, Heartbeat, RECORD_MAX},
    v1,
};
use prost::Message as _;

use crate::seeds::{noise, tagged};

/// First byte 0: a beat; 1: an event of a BMC, its key up to the first line's end; 2: what an observer is told by
/// a bus.
pub(crate) fn bus(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 3 {
        0 => beat(bytes),
        1 => event(bytes),
        _ => drop(story(&mut Unstructured::new(bytes))),
    }
}

/// What is taken is a beat of a host, of a boot, with a number, and reads the same in our own words.
fn beat(record: &[u8]) {
    match Heartbeat::read(record) {
        Ok(beat) => {
            assert!(record.len() <= RECORD_MAX && beat.boot.0 != 0 && beat.sequence != 0, "{beat:?}");
            assert_eq!(Heartbeat::read(&beat.to_protobuf()).as_ref(), Ok(&beat));
            let (host, boot) = (&beat.host, beat.boot);
            let text = format!(r#"{{"host":"{host}","boot-id":"{boot}","sequence":{}}}"#, beat.sequence);
            assert_eq!(Heartbeat::read(text.as_bytes()).as_ref(), Ok(&beat), "{text}");
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

/// Whose BMC it was is said by the key, if there is one, and power is lost only where that was said.
fn event(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (key, record) = end.map_or((None, bytes), |end| (Some(&bytes[..end]), &bytes[end + 1..]));
    match BmcEvent::read(key, record) {
        Ok(BmcEvent { host, said }) => {
            assert_eq!(HostId::new(&host.to_string()).as_ref(), Ok(&host));
            if let BmcSaid::Redfish(events) = said {
                let keyed = key.and_then(|key| std::str::from_utf8(key).ok()).filter(|key| !key.is_empty());
                assert!(keyed.is_none_or(|key| key == host.to_string()), "{host} is not whom the key names");
                let _ = power_goes(&events);
            }
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

/// Whatever a bus tells, and in whichever order: a beat counts once, and no bad opinion is taken back.
fn story(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let policy = Policy::default();
    let mut now = Instant(1_000_000_000);
    let mut observer = Observer::new(ReplicaId(1), 1, &policy, now);
    observer.caught_up(now);
    let boots = [BootId(1), BootId(2)];
    let host = |number: u8| HostId::new(&format!("h{number}")).expect("a name");
    let view = HostView {
        epoch: Epoch(1),
        watched: true,
        grantable: true,
        boot: Some(boots[0]),
        ..HostView::default()
    };
    let slots = [1, 2, 3].map(|number| observer.watch(now, &host(number), view.clone()));
    for slot in slots {
        // Heard once, so that the clock of its boot is known.
        let beat = Beat::bare(boots[0], 1, Epoch(1));
        let _ = observer.heartbeat(now, slot, &beat);
        observer.tells_time(now, slot, boots[0], now);
    }
    let mut counted = BTreeSet::new();
    while !u.is_empty() {
        let slot = *u.choose(&slots)?;
        let partition = Partition { topic: u.int_in_range(0..=1)?, number: u.int_in_range(0..=2)? };
        let place = Place {
            partition,
            offset: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=40)? },
        };
        let before = observer.opinion(slot);
        match u.int_in_range(0..=6_u8)? {
            0 => observer.bus_begins(partition, now, place.offset),
            1 => {
                let extent = Extent {
                    asked_at: now,
                    read_to: u.int_in_range(0..=40)?,
                    first: u.int_in_range(0..=40)?,
                    end: place.offset,
                };
                let _ = observer.bus_holds(partition, &extent);
            }
            2 => observer.bus_passes(place),
            3 => {
                let _ = observer.bmc_event(now, slot, place);
            }
            4 => {
                now = now.plus(Millis(u.int_in_range(0..=3000)?));
                let _ = observer.woke(now);
                continue;
            }
            _ => {
                let sequence = if u.ratio(1, 16)? { u64::MAX } else { u.int_in_range(2..=60)? };
                let beat = BusBeat { boot: *u.choose(&boots)?, sequence };
                if observer.bus_beat(now, slot, place, &beat) == Heed::Counted {
                    assert_eq!(beat.boot, boots[0], "a beat of another boot counts");
                    assert!(sequence < u64::MAX, "no clock shows that");
                    assert!(counted.insert((slot, beat.sequence)), "{beat:?} counts twice");
                }
            }
        }
        let after = observer.opinion(slot);
        assert!(before != Some(Opinion::Dead) || after == before, "a bus took a vote back");
    }
    Ok(())
}

pub(crate) fn bus_seeds() -> Vec<Vec<u8>> {
    const BOOT: &str = "0f5bb1f7-6a45-4c0e-9f5e-6c9f2b7a7d01";
    let host = HostId::new("h1").expect("a name");
    let beat = Heartbeat { host, boot: BootId::parse(BOOT).expect("a boot"), sequence: 7 };
    let lost = v1::BusBmcEvent { host: "h1".into(), power: v1::BusPower::Lost.into() };
    let redfish = r#"{"Context":"h2","Events":[{"MessageId":"ResourceEvent.1.3.ResourcePoweredOff","OriginOfCondition":{"@odata.id":"/redfish/v1/Systems/1"}}]}"#;
    let mut seeds = vec![
        tagged(0, beat.to_protobuf()),
        tagged(0, format!(r#"{{"host":"h1","boot-id":"{BOOT}","sequence":7,"rack":1}}"#)),
        tagged(1, [b"h1\n".as_slice(), &lost.encode_to_vec()].concat()),
        tagged(1, format!("\n{redfish}")),
        tagged(1, format!("h1\n{redfish}")),
        tagged(1, "\n{\"host\":\"h1\",\"power\":\"other\"}"),
    ];
    seeds.extend(noise().into_iter().take(12).map(|noise| tagged(2, noise)));
    seeds
}
