//! A BMC that speaks IPMI 2.0: Debian's `ipmi_sim`, whose power is a real process group.
//!
//! It calls a program of ours for everything about the chassis, so what it reads is whether the process runs, and
//! what it switches off is killed. Files beside that program make it slow, deaf or untruthful.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::cluster::ports;
use crate::cluster::process::{Process, Program};
use crate::needs;

/// Longer than a start takes on any machine.
const START_WITHIN: Duration = Duration::from_secs(30);

/// What `ipmi_sim` calls: `PROGRAM 0x20 get power` and `PROGRAM 0x20 set power 0`.
const CHASSIS: &str = r#"#!/bin/sh
# The power of one host. $1 is the controller; then a verb, what it is about, and a value.
dir=${0%/*}
echo "$2 $3 $4" >> "$dir/requests"
[ -e "$dir/slow" ] && sleep "$(cat "$dir/slow")"
pid=$(cat "$dir/host.pid")
runs() {
  read -r stat 2> /dev/null < "/proc/$pid/stat" || return 1
  case ${stat##*)} in ' Z'* | ' X'*) return 1 ;; esac
}
case "$2 $3 $4" in
  'get power ')
    if [ -e "$dir/answers" ]; then cat "$dir/answers"
    elif runs; then echo power:1
    else echo power:0; fi ;;
  'set power 0') [ -e "$dir/deaf" ] || kill -s KILL -- "-$pid" ;;
esac
exit 0
"#;

/// An IPMI controller.
#[derive(Debug, Clone)]
pub struct IpmiConfig {
    /// The system's GUID, in the order of the wire.
    pub guid: [u8; 16],
    /// The product's serial number.
    pub serial: String,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl Default for IpmiConfig {
    fn default() -> Self {
        Self {
            guid: *b"\xa1\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef",
            serial: "SN-1".to_owned(),
            user: "defib".to_owned(),
            password: "geheim".to_owned(),
        }
    }
}

/// `ipmi_sim` with its files in `folder`: it listens at `address` and calls `chassis` for everything about the power.
///
/// # Errors
/// When it is not installed, or its files can't be written.
pub fn program(
    folder: &Path,
    config: &IpmiConfig,
    address: SocketAddr,
    chassis: &str,
) -> anyhow::Result<Program> {
    fs::create_dir_all(folder.join("state"))?;
    fs::write(folder.join("lan.conf"), lan(config, address, chassis))?;
    fs::write(folder.join("sim.emu"), emulation(config))?;
    Ok(Program {
        path: needs::find("ipmi_sim").context("no ipmi_sim: install openipmi")?,
        arguments: vec![
            "-n".into(),
            "-c".into(),
            folder.join("lan.conf").into(),
            "-f".into(),
            folder.join("sim.emu").into(),
            "-s".into(),
            folder.join("state").into(),
        ],
        output: folder.join("ipmi_sim.log"),
        watched_input: false,
    })
}

/// A running `ipmi_sim` and its host.
#[derive(Debug)]
pub struct IpmiSim {
    folder: PathBuf,
    address: SocketAddr,
    simulator: Process,
    host: Process,
}

impl IpmiSim {
    /// Starts a host, which is a process that only waits, and its controller. Their files are in `folder`.
    ///
    /// # Errors
    /// When it can't be started, or does not listen in time.
    pub async fn start(folder: &Path, config: &IpmiConfig) -> anyhow::Result<Self> {
        let address = *ports::free(1)?.first().context("no free port")?;
        fs::create_dir_all(folder)?;
        let log = folder.join("ipmi_sim.log");
        let sh = needs::find("sh").context("no sh")?;
        let host = Process::start(&Program {
            path: sh,
            // Two processes: what is switched off is a group.
            arguments: ["-c", "sleep 100000 & wait"].map(Into::into).to_vec(),
            output: folder.join("host.log"),
            watched_input: false,
        })?;
        fs::write(folder.join("host.pid"), host.pid().to_string())?;
        let chassis = folder.join("chassis");
        fs::write(&chassis, CHASSIS)?;
        fs::set_permissions(&chassis, fs::Permissions::from_mode(0o755))?;
        let simulator = Process::start(&program(folder, config, address, &chassis.display().to_string())?)?;
        let mut sim = Self { folder: folder.to_owned(), address, simulator, host };
        let end = now() + START_WITHIN;
        while !listens(address) {
            if let Some(status) = sim.simulator.ended() {
                bail!("ipmi_sim ended with {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            if now() > end {
                bail!("ipmi_sim does not listen at {address}");
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(sim)
    }

    /// Where it answers.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the host's process runs.
    pub fn host_runs(&mut self) -> bool {
        self.host.ended().is_none()
    }

    /// Makes it answer so slowly, or at its usual pace again.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn slow(&self, seconds: Option<f32>) -> anyhow::Result<()> {
        self.fault("slow", seconds.map(|seconds| seconds.to_string()))
    }

    /// Makes it accept an order to switch and do nothing.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn deaf(&self, deaf: bool) -> anyhow::Result<()> {
        self.fault("deaf", deaf.then(String::new))
    }

    fn fault(&self, name: &str, content: Option<String>) -> anyhow::Result<()> {
        let file = self.folder.join(name);
        match content {
            Some(content) => fs::write(file, content)?,
            None => fs::remove_file(file).or_else(|error| {
                if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
            })?,
        }
        Ok(())
    }

    /// Everything that it was asked to switch, in order.
    #[must_use]
    pub fn switched(&self) -> Vec<String> {
        let requests = fs::read_to_string(self.folder.join("requests")).unwrap_or_default();
        requests.lines().filter(|line| line.starts_with("set ")).map(str::to_owned).collect()
    }

    /// Ends the controller and leaves the host alone: the management network is dark.
    pub fn darken(&mut self) {
        self.simulator.kill();
    }
}

impl Drop for IpmiSim {
    fn drop(&mut self) {
        // Its leader is killed with `Process`; not yet reaped, it still lends its number to the group.
        if self.host.ended().is_none() {
            let _ = killpg(Pid::from_raw(self.host.pid()), Signal::SIGKILL);
        }
        ports::release([self.address]);
    }
}

fn now() -> Instant {
    Instant::now()
}

/// Whether a datagram socket of this machine is bound to an address.
fn listens(address: SocketAddr) -> bool {
    let port = format!(":{:04X} ", address.port());
    fs::read_to_string("/proc/net/udp").is_ok_and(|table| {
        table.lines().any(|line| {
            line.split_whitespace().nth(1).is_some_and(|local| format!("{local} ").ends_with(&port))
        })
    })
}

fn lan(config: &IpmiConfig, address: SocketAddr, chassis: &str) -> String {
    let guid: String = config.guid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "name \"host\"\nset_working_mc 0x20\n  startlan 1\n    addr {} {}\n    priv_limit admin\n    \
         allowed_auths_callback none md2 md5 straight\n    allowed_auths_user none md2 md5 straight\n    \
         allowed_auths_operator none md2 md5 straight\n    allowed_auths_admin none md2 md5 straight\n    guid {guid}\n  \
         endlan\n  chassis_control \"{chassis} 0x20\"\n  user 1 false \"\" \"\" user 10 none md2 md5 straight\n  user 2 true \"{}\" \
         \"{}\" operator 10 none md2 md5 straight\n",
        address.ip(),
        address.port(),
        config.user,
        config.password
    )
}

/// A controller with an inventory of its product, a temperature sensor at 60 degrees, and one record in its log.
fn emulation(config: &IpmiConfig) -> String {
    let fru = inventory_of_the_board(&config.serial);
    let sensor = sensor_record();
    let mut text = String::from(
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nsel_enable 0x20 1000 0x0a\n",
    );
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!(" {byte:#x}")).collect::<String>();
    let _ = writeln!(text, "mc_add_fru_data 0x20 0 {} data{}", fru.len(), hex(&fru));
    text.push_str("sensor_add 0x20 0 0x30 1 1\nsensor_set_value 0x20 0 0x30 60 0\n");
    let _ = writeln!(text, "main_sdr_add 0x20{}", hex(&sensor));
    let events = "000111111000000 ".repeat(4);
    let _ = writeln!(text, "sensor_set_event_support 0x20 0 0x30 enable scanning per-state {events}");
    text.push_str("mc_enable 0x20\n");
    // A temperature that went over its upper critical limit.
    let record = [0x10, 0x20, 0x30, 0x5f, 0x20, 0x00, 0x04, 0x01, 0x30, 0x01, 0x59, 0x4a, 0x48];
    let _ = writeln!(text, "sel_add 0x20 2{}", hex(&record));
    text
}

/// FRU information as the platform management standard lays it out: a header, and a product area with a serial number.
fn inventory_of_the_board(serial: &str) -> Vec<u8> {
    let sealed = |mut area: Vec<u8>| {
        let sum = area.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        area.push(sum.wrapping_neg());
        area
    };
    // Version, no internal, chassis or board area, the product area at 8 bytes.
    let mut fru = sealed(vec![1, 0, 0, 0, 1, 0, 0]);
    let text = |text: &str| {
        let bytes = text.as_bytes();
        let length = u8::try_from(bytes.len().min(63)).unwrap_or(0);
        let mut field = vec![0xc0 | length];
        field.extend(&bytes[..usize::from(length)]);
        field
    };
    let mut product = vec![1, 0, 25];
    // Manufacturer, name, part, version, serial, asset tag, file.
    for field in ["Lab", "Host", "", "", serial, "", ""] {
        product.extend(text(field));
    }
    product.push(0xc1);
    while product.len() % 8 != 7 {
        product.push(0);
    }
    product[1] = u8::try_from((product.len() + 1) / 8).unwrap_or(u8::MAX);
    fru.extend(sealed(product));
    fru
}

/// A full sensor record: a temperature in degrees Celsius, with its upper limits.
fn sensor_record() -> Vec<u8> {
    let mut body =
        vec![0x20, 0, 0x30, 7, 1, 0x7f, 0x68, 1, 1, 0x80, 0x0a, 0x80, 0x0a, 0x38, 0x38, 0x80, 1, 0, 0, 1];
    body.extend([0; 9]);
    body.extend([0x7f, 0x80, 90, 80, 70, 0, 0, 0, 2, 2, 0, 0, 0, 0xc4]);
    body.extend(b"Temp");
    let mut record = vec![0, 0, 0x51, 1, u8::try_from(body.len()).unwrap_or(u8::MAX)];
    record.extend(body);
    record
}
