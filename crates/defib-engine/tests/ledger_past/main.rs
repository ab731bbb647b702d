//! Words of the past: whatever arrives late, was said in another boot or epoch, or concerns what was dropped and came
//! back, it must neither prove a death nor start a VM twice.

#![allow(clippy::unwrap_used, reason = "a test")]

mod log;
mod machines;
mod reports;

use defib_engine::ledger::{Place, Standing};
use defib_model::{
    ClusterVersion, Command, HostNote, Incarnation, LogIndex, Millis, Opinion, Policy, ReplicaId,
    command::{AgentReport, FenceResult, Goodbye, LifeSign, PowerOffReading, StartResult, VmReport},
    event::Phase,
    inventory::Definition,
};
use log::{A, B, Log, host, inventory, operator, vm};

#[test]
fn a_late_report_of_a_former_boot_is_no_proof_that_the_present_one_is_dead() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Asks);
    log.found_off("h1");
    log.readmit("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Active);
    // A replica that was cut off for a while takes the lead, with a session of the former boot still open.
    log.report("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Active, "{}", log.last_event());
    assert!(log.last_event().contains("is over"), "{}", log.last_event());
}

#[test]
fn a_condemned_host_is_not_let_in_by_a_late_report_of_its_former_boot() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Asks);
    log.wait_for_act_after();
    log.report("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead, "a new boot id proves the former boot dead");
    log.readmit("h1", B, &[]);
    log.opinions("h1", Opinion::Dead);
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
}

/// Two machines with one name (a copied disk, a copied certificate): the other one's boot ends nothing.
#[test]
fn a_new_boot_proves_nothing_while_the_one_in_use_is_heard() {
    let mut log = Log::new();
    let refused = |log: &mut Log, standing| {
        log.report("h1", B, &[]);
        assert_eq!(log.standing("h1"), standing, "{}", log.last_event());
        assert!(log.last_event().contains("two machines bear its name"), "{}", log.last_event());
    };
    refused(&mut log, Standing::Active);
    // Missed for a moment only: one that boots takes longer.
    log.opinions("h1", Opinion::Asks);
    refused(&mut log, Standing::Active);
    // Heard again by one of the quorum, and missed anew: that counts from then.
    log.wait_for_act_after();
    log.opinions("h1", Opinion::Alive);
    log.opinions("h1", Opinion::Asks);
    refused(&mut log, Standing::Active);
    // It is condemned and comes to itself: who is let in is the boot in use, not the other one.
    log.opinions("h1", Opinion::Dead);
    log.wait_for_act_after();
    log.opinions("h1", Opinion::Alive);
    refused(&mut log, Standing::Condemned);
    log.readmit("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Active, "{}", log.last_event());
    // It has gone, and what speaks is what has booted.
    log.opinions("h1", Opinion::Asks);
    log.wait_for_act_after();
    log.report("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead, "{}", log.last_event());
}

/// An armed watchdog makes the end of a lease a proof: nobody else's word may arm it.
#[test]
fn a_boot_that_has_to_wait_says_nothing_of_the_watchdog_of_the_one_in_use() {
    let mut log = Log::new();
    let armed = |boot, log: &Log| AgentReport {
        host: host("h1"),
        boot,
        epoch: log.epoch("h1"),
        watchdog_armed: true,
        vms: Vec::new(),
        note: HostNote::default(),
    };
    let report = armed(B, &log);
    log.apply(Command::AgentReported(report));
    assert!(log.last_event().contains("has to wait"), "{}", log.last_event());
    assert!(!log.ledger.hosts()[&host("h1")].watchdog_armed);
    let report = armed(A, &log);
    log.apply(Command::AgentReported(report));
    assert!(log.ledger.hosts()[&host("h1")].watchdog_armed);
}

/// The network to the replicas is cut, and other hosts reach the one that is missed.
#[test]
fn a_new_boot_proves_nothing_while_anything_shows_that_the_one_in_use_lives() {
    let mut log = Log::new();
    let reached = || LifeSign::Reached { neighbour: host("h2") };
    let refused = |log: &mut Log, standing| {
        log.report("h1", B, &[]);
        assert_eq!(log.standing("h1"), standing, "{}", log.last_event());
        assert!(log.last_event().contains("which r2 misses and which lives"), "{}", log.last_event());
    };
    log.opinions("h1", Opinion::Asks);
    log.life_sign(2, "h1", reached());
    log.wait_for_act_after();
    refused(&mut log, Standing::Active);
    // Neither a verdict nor a vote of that observer takes it back.
    log.opinions("h1", Opinion::Dead);
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
    refused(&mut log, Standing::Condemned);
    // That it is heard, and hears nobody, shows it as well.
    log.life_sign(2, "h1", LifeSign::Heard);
    log.at += 14_000;
    refused(&mut log, Standing::Condemned);
    log.life_sign(2, "h1", LifeSign::Nothing);
    log.report("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead, "{}", log.last_event());
    // What was known of the former boot says nothing of the one that is let in now.
    log.readmit("h1", B, &[]);
    assert!(log.ledger.hosts()[&host("h1")].life_signs.is_empty());
}

#[test]
fn a_replica_that_died_with_its_word_that_a_boot_lives_keeps_no_new_boot_out_for_ever() {
    let lives = |log: &mut Log| {
        log.opinions("h1", Opinion::Asks);
        log.life_sign(2, "h1", LifeSign::Reached { neighbour: host("h2") });
        log.wait_for_act_after();
        log.report("h1", B, &[]);
        assert_eq!(log.standing("h1"), Standing::Active, "{}", log.last_event());
    };
    let mut log = Log::new();
    lives(&mut log);
    log.at += 13_000;
    log.apply(Command::Tick);
    let again = log.ledger.next_wait().expect("the leader looks again").0;
    assert!((log.at..log.at + 1000).contains(&again), "{again}");
    log.at = again;
    log.report("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead, "{}", log.last_event());
    // It starts again: what it knew then, it must find out anew.
    let mut log = Log::new();
    lives(&mut log);
    log.apply(Command::ObserverStarted {
        observer: ReplicaId(2),
        session: 2,
        supports: ClusterVersion::NEWEST,
    });
    log.report("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead, "{}", log.last_event());
}

#[test]
fn a_boot_that_was_read_off_never_comes_back() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Asks);
    log.found_off("h1");
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead);
    log.readmit("h1", B, &[]);
    assert_eq!(log.standing("h1"), Standing::Active);
}

#[test]
fn who_died_is_let_in_only_when_a_quorum_hears_it_anew() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Asks);
    let command = Command::ConfirmDead { host: host("h1"), epoch: log.epoch("h1"), operator: operator() };
    log.apply(command);
    log.readmit_unheard("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Dead);
    assert!(log.last_event().contains("missed by a quorum"), "{}", log.last_event());
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Active, "nothing said that its boot is over");
}

#[test]
fn nobody_is_let_in_while_its_power_is_being_cut() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Dead);
    let recovery = log.ledger.hosts()[&host("h1")].recovery.unwrap();
    log.apply(Command::FenceIntended { recovery, attempt: 1, level: 0 });
    assert_eq!(log.ledger.recoveries()[&recovery].phase, Phase::Fencing);
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
    // The fence failed, and the host is there: now it may.
    let result = FenceResult::Unknown { detail: "no answer".into() };
    log.apply(Command::FenceEnded { recovery, attempt: 1, result });
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Active, "{}", log.last_event());
}

#[test]
fn a_goodbye_of_another_boot_or_epoch_proves_nothing() {
    let mut log = Log::new();
    let goodbye =
        |epoch, boot| Command::GoodbyeSaid { host: host("h1"), boot, epoch, goodbye: Goodbye::Shutdown };
    let epoch = log.epoch("h1");
    log.apply(goodbye(epoch, B));
    assert_eq!(log.standing("h1"), Standing::Active);
    log.apply(goodbye(epoch, A));
    assert_eq!(log.standing("h1"), Standing::Dead, "said in time, it counts");
    // The agent came back in the same boot; another replica brings the same goodbye only now.
    log.readmit("h1", A, &[]);
    log.apply(goodbye(epoch, A));
    assert_eq!(log.standing("h1"), Standing::Active);
}

#[test]
fn a_goodbye_that_every_replica_brings_is_told_once_and_one_of_a_later_restart_again() {
    let mut log = Log::new();
    let epoch = log.epoch("h1");
    let goodbye = || {
        let (host, goodbye) = (host("h1"), Goodbye::AgentRestart);
        Command::GoodbyeSaid { host, boot: A, epoch, goodbye }
    };
    log.apply(goodbye());
    let told = log.ledger.events().head();
    log.apply(goodbye());
    log.apply(goodbye());
    assert_eq!(log.ledger.events().head(), told);
    log.at += 10_000;
    log.apply(goodbye());
    assert_eq!(log.ledger.events().head(), told.next(), "it restarts once more");
}

#[test]
fn a_word_of_a_former_life_of_a_replica_counts_for_nothing() {
    let mut log = Log::new();
    for replica in 1..=2 {
        log.apply(Command::ObserverStarted {
            observer: ReplicaId(replica),
            session: 2,
            supports: ClusterVersion::NEWEST,
        });
    }
    log.opinions("h1", Opinion::Dead);
    let record = &log.ledger.hosts()[&host("h1")];
    assert_eq!(record.opinions.keys().collect::<Vec<_>>(), [&ReplicaId(3)]);
    assert_eq!(log.standing("h1"), Standing::Active);
}

#[test]
fn a_reading_of_off_counts_for_nothing_against_a_quorum_that_hears_the_host() {
    let mut log = Log::new();
    log.opinions("h1", Opinion::Dead);
    log.opinions("h1", Opinion::Alive);
    assert_eq!(log.standing("h1"), Standing::Condemned, "it is not let in yet");
    let reading = PowerOffReading { level: 0, method: 0, identity: "uuid-h1".into(), reads: 2 };
    let epoch = log.epoch("h1");
    log.apply(Command::PowerFoundOff { host: host("h1"), epoch, readings: vec![reading] });
    assert_eq!(log.standing("h1"), Standing::Condemned);
    assert!(log.last_event().contains("heard by a quorum"), "{}", log.last_event());
}

#[test]
fn a_host_is_let_in_under_its_present_epoch_only() {
    let mut log = Log::new();
    let former = log.epoch("h1");
    log.opinions("h1", Opinion::Dead);
    log.opinions("h1", Opinion::Alive);
    log.apply(Command::Readmit {
        host: host("h1"),
        epoch: former,
        boot: A,
        vms: Vec::new(),
        note: HostNote::default(),
    });
    assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
    log.readmit("h1", A, &[]);
    assert_eq!(log.standing("h1"), Standing::Active);
}

#[test]
fn who_still_runs_what_has_moved_is_not_let_in() {
    let mut log = Log::new();
    let running = log.run("h1");
    log.opinions("h1", Opinion::Asks);
    // Whoever said so was wrong.
    let command = Command::ConfirmDead { host: host("h1"), epoch: log.epoch("h1"), operator: operator() };
    log.apply(command);
    log.run("h2");
    log.readmit("h1", A, std::slice::from_ref(&running));
    assert_eq!(log.standing("h1"), Standing::Dead);
    assert!(log.last_event().contains("still runs vm v"), "{}", log.last_event());
    log.readmit("h1", A, &[VmReport { running: false, ..running }]);
    assert_eq!(log.standing("h1"), Standing::Active);
}

#[test]
fn a_vm_that_left_the_inventory_and_came_back_is_not_started_beside_itself() {
    let mut log = Log::new();
    let running = log.run("h1");
    log.inventory(&["h1", "h2", "h3"], &[]);
    assert!(log.ledger.may_run(&host("h1"), &running), "it is not protected any more, nor is it stopped");
    assert!(
        log.ledger
            .judge(&Command::SetInventory {
                inventory: inventory(&["h2", "h3"], &[]),
                replaces: log.ledger.inventory_version(),
                operator: operator(),
            })
            .is_err_and(|why| why.contains("v among them"))
    );
    log.inventory(&["h1", "h2", "h3"], &["v"]);
    assert_eq!(log.place(), Place::Running { host: host("h1") });
    assert!(!log.ledger.index().waiting.contains(&vm("v")));
}

#[test]
fn a_vm_that_runs_gets_no_other_name_under_which_it_would_be_started_beside_itself() {
    let mut log = Log::new();
    let judge = |log: &Log, names: &[&str]| {
        let mut inventory = inventory(&["h1", "h2", "h3"], names);
        for vm in inventory.vms.values_mut() {
            vm.definition = Definition { driver: "libvirt".into(), arguments: vec!["v.xml".into()] };
        }
        let replaces = log.ledger.inventory_version();
        Command::SetInventory { inventory, replaces, operator: operator() }
    };
    let declared = judge(&log, &["v"]);
    log.apply(declared);
    let renamed = judge(&log, &["w"]);
    assert!(log.ledger.judge(&renamed).is_ok(), "it was never started");
    log.run("h1");
    let renamed = judge(&log, &["w"]);
    let why = log.ledger.judge(&renamed).unwrap_err();
    assert!(why.starts_with("vms.w: has the definition of vm v") && why.contains("host h1"), "{why}");
    let version = log.ledger.inventory_version();
    log.apply(renamed);
    assert_eq!(log.ledger.inventory_version(), version, "{}", log.last_event());
    assert!(log.ledger.judge(&judge(&log, &["v", "w"])).is_ok(), "what stays is not renamed");
}

#[test]
fn incarnations_go_on_where_a_vm_was_away_for_a_while() {
    let mut log = Log::new();
    let running = log.run("h1");
    log.inventory(&["h1", "h2", "h3"], &[]);
    log.report("h1", A, &[VmReport { running: false, ..running.clone() }]);
    assert!(!log.ledger.index().waiting.contains(&vm("v")), "not protected, so not restarted");
    log.inventory(&["h1", "h2", "h3"], &["v"]);
    assert!(log.ledger.index().waiting.contains(&vm("v")));
    assert_eq!(log.ledger.vms()[&vm("v")].incarnation, running.incarnation);
    log.run("h2");
    assert_eq!(log.ledger.vms()[&vm("v")].incarnation, running.incarnation.next());
}

#[test]
fn a_vm_that_left_the_inventory_is_not_restarted_when_its_host_dies() {
    let mut log = Log::new();
    log.run("h1");
    log.inventory(&["h1", "h2", "h3"], &[]);
    log.opinions("h1", Opinion::Asks);
    log.found_off("h1");
    assert!(log.ledger.index().waiting.is_empty());
    assert_eq!(log.ledger.open_recoveries().count(), 0, "nothing is left to do");
    log.inventory(&["h1", "h2", "h3"], &["v"]);
    assert!(log.ledger.index().waiting.contains(&vm("v")), "and now it is protected again");
}

#[test]
fn a_host_that_was_away_keeps_its_epoch() {
    let mut log = Log::new();
    let epoch = log.epoch("h3");
    log.inventory(&["h1", "h2"], &["v"]);
    log.inventory(&["h1", "h2", "h3"], &["v"]);
    assert_eq!(log.standing("h3"), Standing::NeverSeen);
    log.readmit("h3", A, &[]);
    assert!(log.epoch("h3") > epoch, "its agent refuses older epochs for ever");
}

#[test]
fn a_shorter_lease_counts_only_when_the_longer_ones_have_run_out() {
    let mut log = Log::new();
    assert_eq!(log.ledger.expiry_may_prove(&host("h1")), Ok(()));
    let mut policy = Policy::default();
    policy.lease.lease = Millis(policy.lease.lease.0 / 2);
    log.apply(Command::SetPolicy { policy: policy.clone(), replaces: 0, operator: operator() });
    assert!(log.ledger.expiry_may_prove(&host("h1")).is_err_and(|why| why.contains("lease policy")));
    log.at += 2 * Policy::default().lease.expiry_wait().0;
    log.apply(Command::Tick);
    assert_eq!(log.ledger.expiry_may_prove(&host("h1")), Ok(()));
    // What does not touch leases waits for nothing.
    policy.detection.act_after = Millis(policy.detection.act_after.0 + 100);
    log.apply(Command::SetPolicy { policy, replaces: 1, operator: operator() });
    assert_eq!(log.ledger.expiry_may_prove(&host("h1")), Ok(()));
}

#[test]
fn after_a_change_of_replicas_leases_count_when_promises_of_the_removed_one_have_run_out() {
    let mut log = Log::new();
    let mut policy = Policy::default();
    policy.lease.lease = Millis(1000);
    policy.lease.watchdog = Millis(2000);
    policy.lease.answer_freshness = Millis(500);
    let wait = policy.lease.expiry_wait().0;
    log.apply(Command::SetPolicy { policy, replaces: 0, operator: operator() });
    log.at += 60_000;
    log.apply(Command::Tick);
    assert_eq!(log.ledger.expiry_may_prove(&host("h1")), Ok(()));
    log.apply(Command::ReplicasChanged { voters: [4, 2, 3].map(ReplicaId).into() });
    // The removed one was led for 5 s more, by what it knew.
    log.at += 5_000 + wait - 100;
    log.apply(Command::Tick);
    assert!(log.ledger.expiry_may_prove(&host("h1")).is_err_and(|why| why.contains("replicas")));
    log.at += 100;
    log.apply(Command::Tick);
    assert_eq!(log.ledger.expiry_may_prove(&host("h1")), Ok(()));
}

#[test]
fn a_change_of_replicas_makes_a_new_electorate_that_agents_take() {
    let mut log = Log::new();
    let before = log.ledger.electorates().last().unwrap().clone();
    log.apply(Command::ReplicasChanged { voters: [4, 2, 3].map(ReplicaId).into() });
    let after = log.ledger.electorates().last().unwrap();
    assert!(after.version > before.version, "a guard takes a newer version only");
    assert_eq!(after.replicas, [4, 2, 3].map(ReplicaId).into());
    assert_eq!(after.hosts, before.hosts);
    let version = after.version;
    // VMs alone change nothing about who counts.
    log.inventory(&["h1", "h2", "h3"], &["v", "w"]);
    assert_eq!(log.ledger.electorates().last().unwrap().version, version);
    log.inventory(&["h1", "h2"], &["v", "w"]);
    assert!(log.ledger.electorates().last().unwrap().version > version);
}

#[test]
fn an_answer_about_a_former_incarnation_changes_nothing() {
    let mut log = Log::new();
    log.run("h1");
    let effect =
        defib_model::EffectId { cause: LogIndex(1), subject: defib_model::Subject::Vm(vm("v")), attempt: 1 };
    let result = StartResult::NotRunning { detail: "late".into(), tried: true };
    log.apply(Command::StartEnded {
        effect,
        vm: vm("v"),
        incarnation: Incarnation(0),
        host: host("h1"),
        result,
    });
    assert_eq!(log.place(), Place::Running { host: host("h1") });
}
