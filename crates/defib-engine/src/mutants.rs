//! Deliberate mistakes in what keeps VMs safe, to see that the simulator catches them: the test of the tester.
//!
//! All that is here, and each place that asks for it, is gone without the feature `mutants`: then `mutated!` is
//! constantly false. The feature can't be built without debug assertions, which no release has.

/// Whether a mistake is made on purpose: never, in every build that is not there to test the simulator.
#[cfg(not(feature = "mutants"))]
macro_rules! mutated {
    ($name:ident) => {
        $crate::mutants::never()
    };
}

/// A function, not a word, so that conditions read the same with the feature and without.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn never() -> bool {
    false
}

/// Whether a mistake is made on purpose.
#[cfg(feature = "mutants")]
macro_rules! mutated {
    ($name:ident) => {
        $crate::mutants::is_made($crate::mutants::Mutant::$name)
    };
}

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "the feature `mutants` breaks what keeps VMs safe: build it with debug assertions, never for a release"
);

#[cfg(feature = "mutants")]
pub use planted::{Mutant, is_made, make};

#[cfg(feature = "mutants")]
mod planted {
    extern crate std;

    use core::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::OnceLock;

    /// The mistake that is made in this process: its number plus one; 0: the one that was asked for, if any.
    static MADE: AtomicUsize = AtomicUsize::new(0);

    /// The one that `DEFIB_MUTANT` named when this was built, as above: so the engine's own tests can be run with it.
    fn asked_for() -> usize {
        static ASKED_FOR: OnceLock<usize> = OnceLock::new();
        *ASKED_FOR.get_or_init(|| {
            let name = option_env!("DEFIB_MUTANT").unwrap_or_default();
            Mutant::ALL.iter().position(|one| one.name() == name).map_or(0, |at| at + 1)
        })
    }

    macro_rules! mutants {
        ($($variant:ident, $name:literal, $mistake:literal;)*) => {
            /// A deliberate mistake.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum Mutant {
                $(#[doc = $mistake] $variant,)*
            }

            impl Mutant {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$variant,)*];

                /// By which it is chosen.
                #[must_use]
                pub const fn name(self) -> &'static str {
                    match self { $(Self::$variant => $name,)* }
                }

                /// What is wrong then.
                #[must_use]
                pub const fn mistake(self) -> &'static str {
                    match self { $(Self::$variant => $mistake,)* }
                }
            }
        };
    }

    mutants! {
        GrantBeforeCaughtUp, "grant-before-caught-up",
            "a replica grants leases before it has caught up with the log";
        GrantOutOfTouch, "grant-out-of-touch",
            "a replica that neither leads nor hears a leader goes on granting leases";
        GrantToCondemned, "grant-to-condemned",
            "a condemned host is granted its lease, whatever its epoch, and whoever voted that it had run out";
        GrantToAnyBoot, "grant-to-any-boot", "another boot than the one that was let in is granted a lease";
        PromiseNotKept, "promise-not-kept", "a replica forgets what it promised when it votes";
        IsolatedAccuses, "isolated-accuses",
            "an observer that hears less than half of the hosts votes them dead";
        VoteWithoutWatchdog, "vote-without-watchdog",
            "the vote that a lease has run out does not wait for the watchdog";
        VoteAtOnce, "vote-at-once",
            "the vote that a lease has run out waits neither for the lease nor for claims after it";
        VoteWithoutMajorityOfHosts, "vote-without-majority-of-hosts",
            "the vote that a lease has run out needs no majority of hosts that hold theirs";
        HearFormerBoots, "hear-former-boots",
            "a datagram of a boot that is over counts as one of a new boot, and its session stays open (in the shell)";
        CountFromZero, "count-from-zero", "a new process of an agent counts its heartbeats from 0";
        HearReplays, "hear-replays", "a heartbeat that was heard before counts again";
        ObeyOldTerm, "obey-old-term", "an agent obeys a deposed leader";
        ObeyOldEpoch, "obey-old-epoch", "an agent obeys an order of an epoch that is over";
        LeaseLossStopsNothing, "lease-loss-stops-nothing", "an agent without a lease lets its VMs run, and pets the watchdog";
        NoExemption, "no-exemption", "an agent without a lease stops its VMs whatever its neighbours say";
        PetWithoutLease, "pet-without-lease", "an agent pets the watchdog without a lease";
        ForgetOnRestart, "forget-on-restart", "an agent forgets across its restart what it has seen";
        ForgetGoodbye, "forget-goodbye", "an agent forgets across its restart that it said goodbye";
        StartWithoutLease, "start-without-lease", "an agent starts VMs without a lease";
        LeaseFromReceipt, "lease-from-receipt",
            "an agent counts a promise from when it heard it, not from when it asked";
        LeaseOfOneReplica, "lease-of-one-replica",
            "an agent takes the promise of one replica for that of a majority";
        IgnoreLeaseOfNeighbour, "ignore-lease-of-neighbour",
            "an agent without a lease counts a neighbour that holds one among those that hold none";
        ExemptByAnyAnswer, "exempt-by-any-answer",
            "an agent without a lease goes on without a majority of hosts, by its own vote alone";
        StartOldIncarnation, "start-old-incarnation",
            "an agent starts an incarnation that is older than one that it has seen";
        StartBurnt, "start-burnt", "an agent starts an incarnation that was over";
        VouchBeforeStopped, "vouch-before-stopped", "an agent vouches that a VM is over before it has stopped";
        OpinionOfOldEpoch, "opinion-of-old-epoch", "an opinion on a former epoch of a host counts";
        VotesOfFormerLife, "votes-of-former-life", "a vote of a former life of a replica counts";
        VerdictOfOne, "verdict-of-one", "one observer is enough for a verdict";
        BrakeForgets, "brake-forgets", "the brake forgets the hosts that were condemned";
        BrakeIgnoresDomains, "brake-ignores-domains", "the brake does not look at fault domains";
        OffThoughHeard, "off-though-heard", "a reading of off counts against a quorum that hears the host";
        UnknownFenceProves, "unknown-fence-proves", "a fence whose outcome is unknown proves a death";
        RestartWithoutProof, "restart-without-proof", "the verdict is taken for a proof";
        ExpiryOfOneVoter, "expiry-of-one-voter", "one replica is enough to say that a lease has run out";
        ExpiryWithoutWatchdog, "expiry-without-watchdog",
            "an expired lease proves a death where no watchdog is armed";
        ExpiryWhileUnsettled, "expiry-while-unsettled",
            "an expired lease counts right after the replicas or the lease policy changed";
        GoodbyeOfThePast, "goodbye-of-the-past", "a goodbye of a former boot or epoch counts as a proof";
        BelieveOldReports, "believe-old-reports", "an agent's report of a former epoch counts";
        BelieveAnyMachine, "believe-any-machine",
            "a boot of another machine proves the end of the one in use, as one of the same machine does";
        ReadmitOldEpoch, "readmit-old-epoch", "a host is let in by a readmission of a former epoch";
        ReadmitDeadBoot, "readmit-dead-boot", "a boot that was proven to be over is let in again";
        ReadmitWhileFencing, "readmit-while-fencing", "a host is let in while its power may still be cut";
        ReadmitWithStaleVms, "readmit-with-stale-vms", "a host is let in that still runs VMs which have moved";
        GiveUpForEver, "give-up-for-ever", "a VM that was given up is never tried again";
        SilenceIsStopped, "silence-is-stopped",
            "a start that was cancelled and gave no answer counts as stopped";
        TiersAtOnce, "tiers-at-once", "no tier waits for the one before it";
        IgnoreDependencies, "ignore-dependencies", "no VM waits for what it depends on";
        PlaceUnchecked, "place-unchecked", "the ledger does not check what the planner proposes";
        IgnoreAntiAffinity, "ignore-anti-affinity", "hard rules of groups are ignored";
        IgnoreCapacity, "ignore-capacity", "capacity is ignored";
        IgnoreRequirements, "ignore-requirements", "labels that VMs require are ignored";
        DeafIsHeard, "deaf-is-heard", "a host that speaks and hears nobody counts as heard";
        DeafThoughLeased, "deaf-though-leased", "a host that holds a lease of the others counts as deaf all the same";
        DeafWithoutPromise, "deaf-without-promise", "a host that was answered without a promise counts as deaf when it gets no lease";
        BelieveAnyBoot, "believe-any-boot",
            "another boot of a host is believed, and has its session, while the one in use is heard";
        ObeyOtherBoot, "obey-other-boot", "an agent obeys an order that is meant for another boot of its host";
        BelieveWholeSpans, "believe-whole-spans",
            "an agent that was away believes how long a neighbour has held no lease, and knows no drift";
        ForgetAbsence, "forget-absence",
            "an agent that was away goes on by what its neighbours hold now, whatever they held meanwhile";
        GoOnThoughCondemned, "go-on-though-condemned",
            "an agent that was away, and is told that its host was condemned, goes on by its neighbours' word";
        StartBesideUnprotected, "start-beside-unprotected",
            "a VM that runs unprotected on a host is placed anywhere";
        StartBesideNamesake, "start-beside-namesake", "a new VM is placed though a domain of its name runs somewhere";
        IgnoreDatastores, "ignore-datastores", "a VM is placed where its datastore is not reached";
        PlaceOnUnreached, "place-on-unreached", "VMs are placed on hosts that can't be told, though others fit";
        LeadOutOfTouch, "lead-out-of-touch", "a leader that can reach no host keeps the lead";
        BusForEver, "bus-for-ever", "a host that a bus hears is not voted dead, however long ago its lease ran out";
        ProbeForEver, "probe-for-ever",
            "a host that a neighbour reaches is not voted dead, however long ago its lease ran out";
        AckBeforeSync, "ack-before-sync", "what a replica acknowledges is not on its disk yet (in the shell)";
        FenceWithoutLead, "fence-without-lead", "a BMC is written to without asking whether this replica leads (in the shell)";
    }

    /// Makes a mistake from now on, in the whole process, or none.
    pub fn make(mutant: Option<Mutant>) {
        MADE.store(mutant.map_or(0, |mutant| mutant as usize + 1), Ordering::Relaxed);
    }

    /// Whether it is this one that is made.
    #[must_use]
    pub fn is_made(mutant: Mutant) -> bool {
        let made = match MADE.load(Ordering::Relaxed) {
            0 => asked_for(),
            made => made,
        };
        made == mutant as usize + 1
    }
}
