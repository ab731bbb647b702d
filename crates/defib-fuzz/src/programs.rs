//! What the programs print that drive BMCs: `ipmitool`, and those of fence-agents.

use std::collections::BTreeMap;

use defib_bmc::{
    Identity, PowerState,
    printed::{end_of, event_log, fence_agent, ipmitool, metadata::Metadata, said},
};
use defib_model::inventory::CipherSuite;

use crate::seeds::tagged;

const UUID: &str = "38947555-7742-3448-3784-823347823834";

/// First byte 0: what ipmitool prints; 1: what it complains of; 2: logs and sensors; 3: a status of fence-agents, how
/// it ended first; 4: a list of outlets; 5: metadata; 6: a secret, and behind a line's end what is printed.
pub(crate) fn power_programs(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    // As the output of any child is taken.
    let text = &*String::from_utf8_lossy(bytes);
    match mode % 7 {
        0 => ipmi(text),
        1 => complaints(text),
        2 => logs(text),
        3 => status(text),
        4 => outlets(text),
        5 => fits(text),
        _ => secrets(text),
    }
}

/// Off is what one line says, of the machine whose sixteen bytes were printed.
fn ipmi(text: &str) {
    let expected = Identity::by_uuid(UUID);
    let Some((state, identity)) = ipmitool::reading(text, &expected) else { return };
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Chassis Power is ")).collect();
    let is_off = matches!(lines.as_slice(), [line] if line.trim_end_matches('\r') == "Chassis Power is off");
    assert_eq!(state == PowerState::Off, is_off, "{lines:?}");
    if expected.matches(&identity) {
        let mut wanted: Vec<u8> =
            UUID.replace('-', "").as_bytes().chunks(2).map(|pair| hex(pair[0]) << 4 | hex(pair[1])).collect();
        let mut printed = ipmitool::guid(text).expect("an identity that matches was printed").to_vec();
        // In whichever order.
        wanted.sort_unstable();
        printed.sort_unstable();
        assert_eq!(wanted, printed);
    }
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit - b'a' + 10,
    }
}

/// A refusal repeats a line that was printed and says what to do.
fn complaints(text: &str) {
    let line = said(text, &[]);
    for suite in [CipherSuite::Sha256, CipherSuite::Sha1] {
        if let Some((what, next)) = ipmitool::refusal(&line, suite) {
            assert!(line.contains(&what) && !next.is_empty(), "{what:?}");
        }
    }
    let _ = (ipmitool::control(text), ipmitool::declined(text), ipmitool::serial(text));
    assert!(end_of(&line).chars().count() <= 300 && line.ends_with(&end_of(&line)));
}

fn logs(text: &str) {
    for entry in event_log::entries(text) {
        assert!(!entry.id.is_empty() && entry.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    for sensor in event_log::sensors(text) {
        assert!(!sensor.name.is_empty());
    }
    let _ = event_log::sensor_count(text);
}

fn status(text: &str) {
    let code = text.bytes().next().map(|byte| i32::from(byte) - i32::from(b'0'));
    let has = |word: &str| text.lines().any(|line| line.trim_end() == word);
    let off = has("Status: OFF") && !has("Status: ON") && code == Some(fence_agent::OFF);
    assert_eq!(fence_agent::power(text, code) == Some(PowerState::Off), off, "{text:?}");
}

fn outlets(text: &str) {
    let (plug, list) = text.split_once('\n').unwrap_or(("", text));
    if let Some(name) = fence_agent::outlet(list, ",", plug) {
        let is_it = |line: &str| {
            line.split_once(',').is_some_and(|(one, other)| one.trim() == plug && other.trim() == name)
        };
        assert!(list.lines().any(is_it), "{plug:?} is called {name:?} nowhere");
    }
}

/// What is told to a program is known to it, and it can both switch off and say that it is off.
fn fits(text: &str) {
    let Ok(metadata) = Metadata::parse(text) else { return };
    let options: BTreeMap<String, String> =
        [("ip", "10.0.0.1"), ("plug", "3")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    for (credentials, outlets) in [(false, false), (true, false), (false, true)] {
        match metadata.fits(&options, credentials, outlets) {
            Ok(()) => assert!(text.contains("plug") && text.contains("off") && text.contains("status")),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}

/// No secret is in a message, however it was printed.
fn secrets(text: &str) {
    let (secret, printed) = text.split_once('\n').unwrap_or((text, ""));
    let plain: String = secret.chars().filter(|c| !c.is_control()).collect();
    let line = said(printed, &[secret, "zweites"]);
    assert!(!line.chars().any(char::is_control));
    // A secret that is part of what stands in its place can't be told from it.
    let plain = plain.trim();
    if !plain.is_empty() && !plain.chars().any(|c| "…;zweites".contains(c)) {
        assert!(!line.contains(plain), "{plain:?} is in {line:?}");
    }
}

pub(crate) fn power_programs_seeds() -> Vec<Vec<u8>> {
    let guid = UUID.replace('-', "");
    let pairs: String =
        guid.as_bytes().chunks(2).map(|pair| format!(" {}", String::from_utf8_lossy(pair))).collect();
    let metadata = r#"<?xml version="1.0" ?><resource-agent name="fence_pdu"><parameters><parameter name="action" required="1"/><parameter name="ip" required="1" obsoletes="ipaddr"/><parameter name="ipaddr" required="1" deprecated="1"/><parameter name="plug" required="1" obsoletes="port"/><parameter name="username" required="0"/><parameter name="password" required="0"/></parameters><actions><action name="off"/><action name="status"/><action name="list"/></actions></resource-agent>"#;
    vec![
        tagged(0, format!("{pairs}\n Product Serial        : S1\nChassis Power is off\n")),
        tagged(0, format!("{pairs}\nChassis Power is on\n")),
        tagged(1, "> RAKP 2 HMAC is invalid\nError: Unable to establish IPMI v2 / RMCP+ session\n"),
        tagged(1, "Error in open session response message : invalid authentication algorithm\n"),
        tagged(1, "Chassis Power Control: Down/Off\nSet Chassis Power Control to Down/Off failed: x\n"),
        tagged(2, "1f,11/25/2026,19:00:00,Power Unit #0x02,Power off/down,Asserted\n"),
        tagged(2, "Temp,60,degrees C,ok\nRecord Count                        : 12\n"),
        tagged(3, "2\nStatus: OFF\n"),
        tagged(3, "0\nStatus: ON\n"),
        tagged(4, "3\n13,h13\n3,h3\n"),
        tagged(5, metadata),
        tagged(6, "geheim\nlogin: ge\u{8}heim\nsaid geheim\n"),
    ]
}
