//! One guard by itself. How guards and observers hold together is tested in `crates/defib-engine/tests/guard_lease`.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use defib_model::{EffectId, HostId, Incarnation, LogIndex, Subject, VmId, inventory::Definition};

use super::*;

const BOOT: BootId = BootId(1);

fn ms(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn vm() -> VmId {
    VmId::new("v").unwrap()
}

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn start(incarnation: u64) -> Verb {
    Verb::Start { vm: vm(), incarnation: Incarnation(incarnation), definition: Definition::default() }
}

fn burn(incarnation: u64) -> Verb {
    Verb::Burn { vm: vm(), incarnation: Incarnation(incarnation) }
}

fn starts(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::StartVm { .. }))
}

fn stops(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::StopVm { .. }))
}

fn refusal(effects: &[Effect]) -> Option<Refusal> {
    effects.iter().find_map(|effect| match effect {
        Effect::Report { outcome: Outcome::Refused(refusal), .. } => Some(refusal.clone()),
        _ => None,
    })
}

fn vouches(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Report { outcome: Outcome::NotRunning { .. }, .. }))
}

/// A guard, what it wrote, and the time: three replicas, three hosts, a lease of 3 s, a watchdog of 2 s.
struct Host {
    guard: Guard,
    disk: Option<Durable>,
    now: u64,
    orders: u32,
}

impl Host {
    fn new() -> Self {
        Self::begin(None, BOOT, 10_000)
    }

    fn begin(disk: Option<Durable>, boot: BootId, now: u64) -> Self {
        let mut host = Self::resume(disk, None, boot, now);
        host.step(Input::HypervisorListed);
        host
    }

    fn resume(disk: Option<Durable>, hint: Option<ResumeHint>, boot: BootId, now: u64) -> Self {
        let timing = Timing { lease: Millis(3000), watchdog: Millis(2000), answer_freshness: Millis(500) };
        let config = Config { host: host("h1"), timing };
        let guard = Guard::new(config, disk.clone(), hint, boot, ms(now));
        Self { guard, disk, now, orders: 0 }
    }

    /// Its agent dies, and another process begins a second later.
    fn restart(self) -> Self {
        Self::begin(self.disk, BOOT, self.now + 1000)
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.guard.step(ms(self.now), input);
        for effect in &effects {
            if let Effect::Persist(durable) = effect {
                self.disk = Some(durable.clone());
            }
        }
        effects
    }

    fn electorate(&mut self) {
        let neighbour = |name: &str| Neighbour { address: String::from(name), domain: Vec::new() };
        let hosts: BTreeMap<_, _> = ["h1", "h2", "h3"].map(|name| (host(name), neighbour(name))).into();
        let replicas = [1, 2, 3].map(ReplicaId).into();
        self.step(Input::Electorate(Electorate { version: 1, hosts, replicas }));
    }

    /// A replica's promise of 3 s, for a heartbeat of then.
    fn promised(&mut self, replica: u64, sent_at: u64) {
        let ack = Ack {
            sequence: self.now,
            epoch: self.guard.epoch(),
            granted: true,
            lease_ms: 3000,
            stamp: ms(self.now),
        };
        self.step(Input::Ack { replica: ReplicaId(replica), sent_at: ms(sent_at), ack });
    }

    fn lease(&mut self) {
        self.electorate();
        for replica in 1..=2 {
            self.promised(replica, self.now);
        }
        assert!(matches!(self.guard.lease(ms(self.now)), LeaseState::Held { .. }));
    }

    fn order(&mut self, epoch: u64, term: u64, verb: Verb) -> Vec<Effect> {
        self.orders += 1;
        let effect = EffectId { cause: LogIndex(9), subject: Subject::Vm(vm()), attempt: self.orders };
        self.step(Input::Order(Order { boot: None, epoch: Epoch(epoch), term, effect, verb }))
    }

    fn running(epoch: u64, term: u64, incarnation: u64) -> Self {
        let mut host = Self::new();
        host.lease();
        assert!(starts(&host.order(epoch, term, start(incarnation))));
        host.step(Input::StartFinished { vm: vm(), incarnation: Incarnation(incarnation), result: Ok(()) });
        host
    }
}

#[test]
fn an_order_of_a_deposed_leader_is_refused() {
    let mut host = Host::running(1, 5, 1);
    let effects = host.order(1, 4, burn(1));
    assert_eq!(refusal(&effects), Some(Refusal::StaleTerm { current: 5 }));
    assert!(!stops(&effects));
}

#[test]
fn an_order_of_a_former_epoch_is_refused() {
    let mut host = Host::new();
    host.step(Input::EpochTold { epoch: Epoch(3) });
    host.lease();
    let effects = host.order(1, 1, start(1));
    assert_eq!(refusal(&effects), Some(Refusal::StaleEpoch { current: Epoch(3) }));
    assert!(!starts(&effects));
    assert!(starts(&host.order(3, 1, start(1))), "it was not taken for one that is over");
}

/// Agents wait for hours until their host is declared, or replicas run: what they are ordered first is theirs.
#[test]
fn the_first_order_of_an_epoch_is_not_spoilt_by_having_waited_for_its_lease() {
    let mut host = Host::new();
    host.electorate();
    for _ in 0..10 {
        host.now += 500;
        host.step(Input::Woke);
    }
    assert_eq!(refusal(&host.order(1, 1, start(1))), Some(Refusal::NoLease));
    host.lease();
    assert!(starts(&host.order(1, 1, start(1))), "it comes again, and its lease has come");
    // Once it had one, and lost it, nobody may wait for it: the order is over, and its VM may go elsewhere.
    let mut host = Host::running(1, 1, 1);
    host.now += 4500;
    assert!(stops(&host.step(Input::Woke)));
    host.step(Input::StopFinished { vm: vm(), incarnation: Incarnation(1), ok: true });
    assert!(vouches(&host.order(1, 1, start(2))));
}

#[test]
fn what_was_seen_is_remembered_by_the_next_process() {
    let mut host = Host::running(3, 5, 7).restart();
    host.lease();
    let refused = |effects: Vec<Effect>| refusal(&effects);
    assert_eq!(refused(host.order(2, 5, start(8))), Some(Refusal::StaleEpoch { current: Epoch(3) }));
    assert_eq!(refused(host.order(3, 4, start(8))), Some(Refusal::StaleTerm { current: 5 }));
    let newest = Incarnation(7);
    assert_eq!(refused(host.order(3, 5, start(6))), Some(Refusal::StaleIncarnation { newest }));
    let effects = host.order(3, 5, start(7));
    assert!(!starts(&effects) && vouches(&effects), "it was not found, so it is over: {effects:?}");
    assert!(starts(&host.order(3, 5, start(8))));
}

#[test]
fn no_incarnation_runs_twice_nor_after_a_later_one() {
    let mut host = Host::running(1, 1, 4);
    let effects = host.order(1, 1, start(3));
    assert_eq!(refusal(&effects), Some(Refusal::StaleIncarnation { newest: Incarnation(4) }));
    assert!(stops(&host.order(1, 1, burn(4))));
    host.step(Input::StopFinished { vm: vm(), incarnation: Incarnation(4), ok: true });
    let effects = host.order(1, 1, start(4));
    assert!(!starts(&effects) && vouches(&effects), "{effects:?}");
}

#[test]
fn nobody_vouches_for_the_end_of_what_may_still_run() {
    let mut host = Host::running(1, 1, 1);
    let effects = host.order(1, 1, burn(1));
    assert!(stops(&effects) && !vouches(&effects), "{effects:?}");
    let stopped = |ok| Input::StopFinished { vm: vm(), incarnation: Incarnation(1), ok };
    assert!(!vouches(&host.step(stopped(false))));
    assert!(vouches(&host.step(stopped(true))));
}

#[test]
fn a_promise_counts_from_when_it_was_asked_for() {
    let mut host = Host::new();
    host.electorate();
    for replica in 1..=2 {
        host.promised(replica, host.now - 2000);
    }
    let LeaseState::Held { until, .. } = host.guard.lease(ms(host.now)) else { panic!("it holds one") };
    assert_eq!(until, ms(host.now + 1000));
}

#[test]
fn one_of_three_replicas_makes_no_lease() {
    let mut host = Host::new();
    host.electorate();
    host.promised(3, host.now);
    assert!(!matches!(host.guard.lease(ms(host.now)), LeaseState::Held { .. }));
    host.promised(1, host.now);
    assert!(matches!(host.guard.lease(ms(host.now)), LeaseState::Held { .. }));
}

#[test]
fn without_a_lease_or_a_majority_of_neighbours_nobody_pets_the_watchdog_and_vms_stop() {
    let mut host = Host::running(1, 1, 1);
    host.now += 2999;
    host.step(Input::Woke);
    assert!(host.guard.may_pet(ms(host.now)));
    host.now += 1;
    let effects = host.step(Input::Woke);
    assert!(!host.guard.may_pet(ms(host.now)) && !stops(&effects), "{effects:?}");
    host.now += 1200;
    assert!(stops(&host.step(Input::Woke)), "at 3/5 of the watchdog's time");
    assert!(!host.guard.may_pet(ms(host.now)));
}

#[test]
fn a_majority_without_a_lease_vouches_though_others_have_theirs_again() {
    let mut host = Host::running(1, 1, 1);
    host.now += 2900;
    let answer = |host: &mut Host, from: &str, holds_lease: bool| {
        let asked_at = ms(host.now);
        let answer = Answer { holds_lease, without_for: Millis(0) };
        host.step(Input::NeighbourAnswer { host: self::host(from), asked_at, answer });
    };
    answer(&mut host, "h2", false);
    answer(&mut host, "h3", true);
    host.now += 200;
    host.step(Input::Woke);
    assert!(matches!(host.guard.lease(ms(host.now)), LeaseState::Exempt { .. }), "two of three hold none");
    answer(&mut host, "h2", true);
    assert!(!matches!(host.guard.lease(ms(host.now)), LeaseState::Exempt { .. }), "two of three hold one");
    assert!(!host.guard.may_pet(ms(host.now)));
}

#[test]
fn a_hint_is_written_again_where_cover_begins_or_jumps() {
    let until = |at| ResumeHint { covered_until: ms(at) };
    assert!(until(0).is_old(ms(100), until(2100)), "cover begins");
    assert!(!until(2100).is_old(ms(300), until(2300)), "it grows, as it does all the time");
    assert!(
        until(2100).is_old(ms(300), until(6300)),
        "the lease that follows neighbours' answers lasts longer"
    );
    assert!(!until(6300).is_old(ms(7000), until(6300)), "nothing covers");
    assert!(!until(6300).is_old(ms(1000), until(900)), "what is over is written in its turn");
}

/// Its agent is away from 10 s on, so its lease ends at 13 s and its bound is 15 s, and comes back at 25 s.
fn was_away() -> Host {
    let host = Host::running(1, 1, 1);
    let hint = host.guard.resume_hint();
    assert_eq!(hint.covered_until, ms(13_000));
    let mut host = Host::resume(host.disk, Some(hint), BOOT, 25_000);
    host.step(Input::Hypervisor(VmObserved {
        vm: vm(),
        incarnation: Incarnation(1),
        running: true,
        readiness: None,
    }));
    host.step(Input::HypervisorListed);
    assert!(!host.guard.may_pet(ms(host.now)));
    host
}

/// A neighbour holds no lease, and has held none for so long.
fn without(host: &mut Host, millis: u64) -> Vec<Effect> {
    let answer = Answer { holds_lease: false, without_for: Millis(millis) };
    host.step(Input::NeighbourAnswer { host: self::host("h2"), asked_at: ms(host.now), answer })
}

#[test]
fn an_agent_that_was_away_beyond_its_bound_goes_on_if_most_hosts_have_held_no_lease_since_then() {
    let mut host = was_away();
    // Since 13 s; of what a neighbour's clock says an eighth is not believed.
    without(&mut host, 12_000);
    assert!(matches!(host.guard.lease(ms(host.now)), LeaseState::Exempt { .. }));
    assert!(host.guard.may_pet(ms(host.now)));
    // From here on the present is enough: it is known of every moment before.
    for _ in 0..20 {
        host.now += 400;
        assert!(!stops(&without(&mut host, 0)));
    }
    assert!(matches!(host.guard.lease(ms(host.now)), LeaseState::Exempt { .. }));
}

#[test]
fn an_agent_that_stood_still_beyond_its_bound_is_as_one_that_was_away() {
    let stood_still = || {
        let mut host = Host::running(1, 1, 1);
        host.now = 25_000;
        assert!(!stops(&host.step(Input::Woke)) && !host.guard.may_pet(ms(host.now)));
        host
    };
    let mut host = stood_still();
    without(&mut host, 12_000);
    assert!(matches!(host.guard.lease(ms(host.now)), LeaseState::Exempt { .. }));
    let mut host = stood_still();
    without(&mut host, 11_000);
    host.now += 800;
    assert!(stops(&host.step(Input::Woke)), "a death may have been proven at 15 s");
    // One that comes back before that must not wait: VMs are to be gone by then.
    let mut host = Host::running(1, 1, 1);
    host.now = 14_900;
    assert!(stops(&host.step(Input::Woke)));
}

#[test]
fn an_agent_that_was_away_beyond_its_bound_stops_its_vms_if_most_hosts_may_have_held_leases_meanwhile() {
    let mut host = was_away();
    without(&mut host, 11_000);
    assert!(!host.guard.may_pet(ms(host.now)), "a death may have been proven at 15 s");
    let stopped = (0..3).any(|_| {
        host.now += 400;
        stops(&without(&mut host, 11_000))
    });
    assert!(stopped, "within 2/5 of the watchdog's time");
}

#[test]
fn an_agent_that_was_away_beyond_its_bound_and_hears_that_it_was_condemned_stops_its_vms_at_once() {
    let mut host = was_away();
    let ack = Ack { sequence: 1, epoch: Epoch(2), granted: false, lease_ms: 0, stamp: ms(host.now) };
    assert!(stops(&host.step(Input::Ack { replica: ReplicaId(1), sent_at: ms(host.now), ack })));
    without(&mut host, 12_000);
    assert!(!host.guard.may_pet(ms(host.now)));
}

#[test]
fn a_host_says_for_how_long_it_has_certainly_held_no_lease() {
    let mut host = Host::new();
    host.now += 700;
    assert_eq!(
        host.guard.answer(ms(host.now)).without_for,
        Millis(700),
        "what a former process held is not known"
    );
    host.lease();
    host.now += 2000;
    assert_eq!(host.guard.answer(ms(host.now)).without_for, Millis(0));
    host.now += 1500;
    assert_eq!(host.guard.answer(ms(host.now)).without_for, Millis(0), "it has not looked yet");
    host.step(Input::Woke);
    host.now += 300;
    assert_eq!(host.guard.answer(ms(host.now)).without_for, Millis(300));
}

#[test]
fn a_process_that_starts_goes_by_the_times_that_the_former_one_told_the_replicas() {
    let mut host = Host::running(1, 1, 1);
    let told = Timing { lease: Millis(1000), watchdog: Millis(1000), answer_freshness: Millis(200) };
    host.step(Input::Timing(told));
    let mut host = host.restart();
    assert_eq!(host.guard.timing(), told);
    // Longer ones count when they have been told for two leases, and are remembered from then on as well.
    let longer = Timing { watchdog: Millis(4000), ..told };
    host.step(Input::Timing(longer));
    host.electorate();
    for _ in 0..30 {
        host.now += 100;
        for replica in 1..=2 {
            host.promised(replica, host.now);
        }
    }
    assert_eq!(host.guard.timing(), longer);
    assert_eq!(host.restart().guard.timing(), longer);
}

#[test]
fn a_goodbye_binds_every_process_of_its_boot_until_the_host_is_let_in_again() {
    let mut host = Host::running(1, 1, 1);
    let mut effects = host.step(Input::ShuttingDown);
    assert!(stops(&effects) && !host.guard.shut_down());
    effects = host.step(Input::StopFinished { vm: vm(), incarnation: Incarnation(1), ok: true });
    assert!(host.guard.shut_down());
    let written = |effect: &Effect| matches!(effect, Effect::Persist(durable) if durable.left.is_some());
    assert!(effects.iter().any(written), "before it is said: {effects:?}");
    let speaks = |host: &Host| {
        (host.guard.beat(ms(host.now), ReplicaId(1), 1, 0).is_some(), host.guard.report().is_some())
    };
    assert_eq!(speaks(&host), (false, false), "or it would be let in again before its process ends");
    let disk = host.disk.clone();

    let mut host = host.restart();
    host.lease();
    assert!(host.guard.says_goodbye_again());
    assert_eq!(speaks(&host), (true, true), "a new process of it may ask to be let in");
    let effects = host.order(1, 1, start(2));
    assert_eq!((refusal(&effects), starts(&effects)), (Some(Refusal::Left), false));
    host.step(Input::EpochTold { epoch: Epoch(3) });
    assert!(!host.guard.says_goodbye_again());
    assert!(starts(&host.order(3, 1, start(2))));

    let mut next_boot = Host::begin(disk, BootId(2), 20_000);
    next_boot.lease();
    assert!(!next_boot.guard.says_goodbye_again(), "that boot is gone");
    assert!(starts(&next_boot.order(1, 1, start(2))));
}

#[test]
fn an_order_for_another_boot_of_its_host_starts_nothing_though_its_epoch_was_heard() {
    let mut host = Host::running(1, 1, 1);
    let effect = EffectId { cause: LogIndex(9), subject: Subject::Vm(vm()), attempt: 1 };
    let order = |boot| Order { boot, epoch: Epoch(1), term: 1, effect: effect.clone(), verb: start(2) };
    let own = host.guard.boot();
    let twin = BootId(own.0 + 1);
    let effects = host.step(Input::Order(order(Some(twin))));
    assert_eq!((refusal(&effects), starts(&effects)), (Some(Refusal::OtherBoot { meant: twin }), false));
    assert_eq!(refusal(&host.step(Input::Order(order(Some(own))))), None);
}
