//! What `ipmitool` prints, and what it means. Exact where it proves something, lenient where it explains.

use defib_model::inventory::CipherSuite;

use crate::{Identity, PowerState, ReportedIdentity};

/// What to do about a refused login; such a refusal is not repeated at once.
pub const CREDENTIALS: &str = "correct the credentials";

/// The power, and which machine it is of, from one session; `None`: nothing is said of the power.
#[must_use]
pub fn reading(output: &str, expected: &Identity) -> Option<(PowerState, ReportedIdentity)> {
    let state = match power(output)? {
        "on" => PowerState::On,
        "off" => PowerState::Off,
        other => PowerState::Unknown(other.chars().take(64).collect()),
    };
    let identity = ReportedIdentity {
        uuid: guid(output).map(|bytes| uuid(bytes, expected.uuid.as_deref())),
        serial: serial(output),
        outlet: None,
    };
    Some((state, identity))
}

/// The one word behind `Chassis Power is`. Nothing if it was not said, or said twice.
pub fn power(output: &str) -> Option<&str> {
    let mut words = output.lines().filter_map(|line| line.strip_prefix("Chassis Power is "));
    let word = words.next()?.trim_end_matches('\r');
    words.next().is_none().then_some(word)
}

/// What came of a change of the power.
pub fn control(output: &str) -> Option<&str> {
    output.lines().find(|line| line.starts_with("Chassis Power Control: ")).map(str::trim_end)
}

/// Whether the BMC itself declined a change: with a completion code, in a session.
pub fn declined(errors: &str) -> bool {
    errors.contains("Set Chassis Power Control to")
}

/// The sixteen bytes of the GUID: a line of nothing but sixteen pairs of hexadecimal digits.
pub fn guid(output: &str) -> Option<[u8; 16]> {
    output.lines().find_map(|line| {
        let bytes: Option<Vec<u8>> = line
            .split_whitespace()
            .map(|pair| (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok()).flatten())
            .collect();
        <[u8; 16]>::try_from(bytes?).ok()
    })
}

/// The text of a GUID. Controllers disagree on the order of its bytes: that of RFC 4122, SMBIOS (the first three fields
/// turned round), or IPMI (all turned round). The one that is `expected` is taken, the first otherwise: sixteen
/// bytes that are another machine's stay another machine's in any of these orders.
pub fn uuid(bytes: [u8; 16], expected: Option<&str>) -> String {
    let text = |b: [u8; 16]| {
        let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    };
    let mut smbios = bytes;
    smbios[..4].reverse();
    smbios[4..6].reverse();
    smbios[6..8].reverse();
    let mut ipmi = bytes;
    ipmi.reverse();
    let plain = |text: &str| text.replace('-', "").to_ascii_lowercase();
    let forms = [text(bytes), text(smbios), text(ipmi)];
    let wanted = expected.map(plain);
    let [first, ..] = &forms;
    forms.iter().find(|form| Some(plain(form)) == wanted).unwrap_or(first).clone()
}

/// The serial number of the product in the inventory of the main board (FRU 0).
pub fn serial(output: &str) -> Option<String> {
    let line = output.lines().find_map(|line| line.trim_start().strip_prefix("Product Serial"))?;
    let (_, value) = line.split_once(':')?;
    Some(value.trim().to_owned())
}

/// What the BMC refuses for good, and what to do about it.
pub fn refusal(errors: &str, suite: CipherSuite) -> Option<(String, String)> {
    let found = |words: &[&str]| {
        errors.split("; ").find(|line| words.iter().any(|word| line.contains(word))).map(str::to_owned)
    };
    if let Some(line) = found(&["unauthorized name", "HMAC is invalid", "unauthorized GUID"]) {
        return Some((line, CREDENTIALS.to_owned()));
    }
    let unknown_suite = [
        "invalid authentication algorithm",
        "invalid integrity algorithm",
        "invalid confidentiality",
        "no cipher suite",
    ];
    if let Some(line) = found(&unknown_suite) {
        let next = match suite {
            CipherSuite::Sha256 => {
                "its BMC does not take cipher suite 17; enable it there, or, if it can't, write `cipher-suite: 3` into \
                 this host's entry"
            }
            CipherSuite::Sha1 => "its BMC does not take cipher suite 3; try 17, which is the default",
        };
        return Some((line, next.to_owned()));
    }
    let privilege =
        ["unauthorized role", "Set Session Privilege Level", "Down/Off failed: Insufficient privilege"];
    found(&privilege).map(|line| (line, "give its user the OPERATOR privilege on this channel".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_line_is_a_power_state() {
        assert_eq!(power(" a1\nChassis Power is off\n"), Some("off"));
        assert_eq!(power("Chassis Power is on"), Some("on"));
        assert_eq!(power("Chassis Power is off \n"), Some("off "), "which is not the word");
        for none in [
            "",
            "chassis power is off",
            "x Chassis Power is off",
            "Chassis Power is off\nChassis Power is on\n",
        ] {
            assert_eq!(power(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_guid_is_recognised_in_each_order_of_its_bytes_and_in_no_other() {
        let output = " a1 23 45 67 89 ab cd ef 01 23 45 67 89 ab cd ef\nChassis Power is on\n";
        let bytes = guid(output).unwrap();
        for form in [
            "a1234567-89ab-cdef-0123-456789abcdef",
            "674523A1-AB89-EFCD-0123-456789ABCDEF",
            "efcdab89-6745-2301-efcd-ab89674523a1",
        ] {
            assert_eq!(uuid(bytes, Some(form)), form.to_lowercase());
        }
        assert_eq!(uuid(bytes, Some("other")), "a1234567-89ab-cdef-0123-456789abcdef");
        for none in ["01 00 00", "a1 23", "", " a1 23 45 67 89 ab cd ef 01 23 45 67 89 ab cd ef 00", "zz"] {
            assert_eq!(guid(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_products_serial_is_taken_and_not_the_boards() {
        let output = "FRU Device Description : Builtin FRU Device (ID 0)\n Board Serial          : B1\n Product Serial        : S 1\n";
        assert_eq!(serial(output).as_deref(), Some("S 1"));
        assert_eq!(serial(" Device not present (Invalid data field in request)"), None);
    }

    #[test]
    fn refusals_are_told_from_silence_with_what_to_do() {
        let next = |errors: &str| refusal(errors, CipherSuite::Sha256).map(|(_, next)| next);
        assert_eq!(next("Loading; > RAKP 2 HMAC is invalid; Error: x").as_deref(), Some(CREDENTIALS));
        assert!(
            next("Error in open session response message : invalid authentication algorithm")
                .is_some_and(|next| next.contains("cipher-suite: 3"))
        );
        assert!(
            next("Set Session Privilege Level to OPERATOR failed")
                .is_some_and(|next| next.contains("OPERATOR"))
        );
        assert_eq!(next("Error: Unable to establish IPMI v2 / RMCP+ session"), None);
        // What `-v` prints at each session of a user without more than he needs.
        assert_eq!(next("Invalid completion code received: Insufficient privilege level"), None);
    }
}
