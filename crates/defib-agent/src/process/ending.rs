//! The end of VMs: of all at once, because each must be gone while its lease's bound lasts, whatever becomes of the
//! others. One whose process hangs in the kernel (a disk that answers no more) keeps no other one alive.

use std::{collections::BTreeSet, fs};

use defib_model::{Incarnation, Millis, VmId};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use super::{
    ProcessDriver,
    record::Record,
    table::{Stat, marks},
};

/// The first pause between two looks: the kernel takes a moment.
const LOOK_AGAIN: Millis = Millis(1);
/// The longest: what does not go within seconds waits for a disk, and looking costs.
const LOOK_AGAIN_MAX: Millis = Millis(250);

/// A VM that is being ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Its processes by number and start, as far as they were seen. Children of those that end have other parents
    /// then, so what was seen once stays known.
    known: BTreeSet<(i32, u64)>,
    by_itself: bool,
}

/// A VM of which nothing is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Which VM.
    pub vm: VmId,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
    /// Nobody had asked for it.
    pub by_itself: bool,
}

/// All processes of the machine at one moment, and what those that may be somebody's say of themselves.
#[derive(Debug)]
pub(super) struct Table {
    all: Vec<Stat>,
    marked: Vec<(Stat, VmId, Incarnation)>,
}

/// Adds all that the processes of `found` have started, as far as their parents live.
fn with_descendants(found: &mut BTreeSet<(i32, u64)>, all: &[Stat]) {
    loop {
        let parents: BTreeSet<i32> = found.iter().map(|(pid, _)| *pid).collect();
        let before = found.len();
        found.extend(
            all.iter().filter(|stat| parents.contains(&stat.parent)).map(|stat| (stat.pid, stat.start)),
        );
        if found.len() == before {
            return;
        }
    }
}

impl Table {
    /// The processes of a VM by number and start: its session, what carries its marks, and their descendants.
    pub(super) fn belongings(&self, vm: &VmId, record: Record) -> BTreeSet<(i32, u64)> {
        let marked = self.marked.iter().filter(|(stat, of, incarnation)| {
            stat.start >= record.start && of == vm && *incarnation == record.incarnation
        });
        let session = record.session(&self.all).chain(marked.map(|(stat, ..)| stat));
        let mut found: BTreeSet<_> = session.map(|stat| (stat.pid, stat.start)).collect();
        with_descendants(&mut found, &self.all);
        found
    }

    /// Kills what is left of a VM; `known` is what was seen of it, and is from now on. Whether nothing is left.
    fn press(&self, vm: &VmId, record: Record, known: &mut BTreeSet<(i32, u64)>) -> bool {
        let left = self.all.iter().map(|stat| (stat.pid, stat.start)).filter(|one| known.contains(one));
        *known = left.chain(self.belongings(vm, record)).collect();
        kill_all(record, known);
        known.is_empty()
    }
}

/// Kills these processes of a VM.
fn kill_all(record: Record, known: &BTreeSet<(i32, u64)>) {
    // The whole group at once first: that is nearly always all.
    if known.contains(&(record.pid, record.start)) {
        let _ = kill(Pid::from_raw(-record.pid), Signal::SIGKILL);
    }
    for (pid, start) in known {
        if Stat::of(*pid).is_some_and(|stat| stat.start == *start) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

/// Buries the first process of a VM, if it was our child.
fn bury(record: Record) {
    while matches!(waitpid(Pid::from_raw(record.pid), Some(WaitPidFlag::WNOHANG)), Err(Errno::EINTR)) {}
}

impl ProcessDriver {
    /// Looks at all processes that have started since the first of these VMs did. Whoever is in the session of a VM is
    /// of that one, whatever it says of itself.
    pub(super) fn table(&self, records: impl Iterator<Item = Record>) -> Table {
        let since = records.map(|record| record.start).min().unwrap_or(u64::MAX);
        let sessions: BTreeSet<i32> = self.vms.values().map(|running| running.record.pid).collect();
        let all = Stat::all();
        // Reading the environments of all processes takes a while, and what can't be meant need not be read.
        let asked = all.iter().filter(|stat| stat.start >= since && !sessions.contains(&stat.session));
        let marked = asked.filter_map(|stat| {
            let (vm, incarnation) = marks(stat.pid, &self.run_dir)?;
            Some((*stat, vm, incarnation))
        });
        Table { marked: marked.collect(), all }
    }

    /// Kills every process of a VM that is held by nobody, and waits for its end; `true` when none is left.
    pub(super) fn end(&self, vm: &VmId, record: Record) -> bool {
        let mut known = BTreeSet::new();
        for _ in 0..200 {
            bury(record);
            if self.table(std::iter::once(record)).press(vm, record, &mut known) {
                let _ = fs::remove_file(self.record_file(vm));
                return true;
            }
            let _ = nix::poll::poll(&mut [], 5_u8);
        }
        false
    }

    /// Asks for the end of a VM and all that it has started, if an incarnation up to `incarnation` runs: the next
    /// [look](Self::look) kills it. `false`: it certainly does not run.
    pub fn stop(&mut self, vm: &VmId, incarnation: Incarnation) -> bool {
        if self.vms.get(vm).is_none_or(|running| running.incarnation() > incarnation) {
            return false;
        }
        self.ending.entry(vm.clone()).or_insert_with(|| Ending { known: BTreeSet::new(), by_itself: false });
        self.pause = LOOK_AGAIN;
        true
    }

    /// How long may pass until the next [look](Self::look); `None`: for as long as no VM is to end.
    #[must_use]
    pub fn look_again(&self) -> Option<Millis> {
        (!self.ending.is_empty()).then_some(self.pause)
    }

    /// Kills all that is left of all VMs that are to end, and of those whose leader has ended: each process that is
    /// there now, and what it forks meanwhile by the next look. Returns the VMs of which nothing is left.
    pub fn look(&mut self) -> Vec<Gone> {
        for (vm, _) in self.vms.iter().filter(|(_, running)| !running.record.lives()) {
            self.ending.entry(vm.clone()).or_insert_with(|| {
                self.pause = LOOK_AGAIN;
                Ending { known: BTreeSet::new(), by_itself: true }
            });
        }
        if self.ending.is_empty() {
            return Vec::new();
        }
        let record = |vm| self.vms.get(vm).map(|running| running.record);
        let all: Vec<(VmId, Record)> =
            self.ending.keys().filter_map(|vm| Some((vm.clone(), record(vm)?))).collect();
        all.iter().for_each(|(_, record)| bury(*record));
        let table = self.table(all.iter().map(|(_, record)| *record));
        let mut gone = Vec::new();
        // First all are killed, and only then is waited.
        for (vm, record) in all {
            let Some(ending) = self.ending.get_mut(&vm) else { continue };
            if !table.press(&vm, record, &mut ending.known) {
                continue;
            }
            let by_itself = ending.by_itself;
            let _ = fs::remove_file(self.record_file(&vm));
            self.ending.remove(&vm);
            self.vms.remove(&vm);
            gone.push(Gone { vm, incarnation: record.incarnation, by_itself });
        }
        self.pause = self.pause.times(2).min(LOOK_AGAIN_MAX);
        gone
    }
}
