//! Which machine is this? Two identifiers, both optional, compared without regard to case and dashes.

use std::fmt;

use defib_model::inventory::significant;

/// What the configuration says about a host: at least one identifier is needed before anything is sent to its BMC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// System UUID as SMBIOS and Redfish know it, in any letter case, with or without dashes.
    pub uuid: Option<String>,
    /// Serial number of the system (not of the board), in any letter case.
    pub serial: Option<String>,
}

/// What a system resource of a BMC said about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedIdentity {
    /// `UUID` of the system, as answered.
    pub uuid: Option<String>,
    /// `SerialNumber` of the system, as answered.
    pub serial: Option<String>,
    /// What a device that switches outlets and knows no systems calls the one of this host.
    pub outlet: Option<String>,
}

impl Identity {
    /// An identity by UUID alone.
    pub fn by_uuid(uuid: impl Into<String>) -> Self {
        Self { uuid: Some(uuid.into()), serial: None }
    }

    /// An identity by serial number alone.
    pub fn by_serial(serial: impl Into<String>) -> Self {
        Self { uuid: None, serial: Some(serial.into()) }
    }

    /// True when at least one identifier could tell one machine from another.
    pub fn is_usable(&self) -> bool {
        [&self.uuid, &self.serial].into_iter().flatten().any(|identifier| significant(identifier).is_some())
    }

    /// True when at least one configured identifier was reported and equal, and none was reported and different.
    ///
    /// A BMC that reports the right serial number with another UUID is *not* a match: after a board was swapped
    /// an operator must record the new identity, because a machine that is half known is not known.
    pub fn matches(&self, reported: &ReportedIdentity) -> bool {
        let verdicts = [
            compare(self.uuid.as_deref(), reported.uuid.as_deref()),
            compare(self.serial.as_deref(), reported.serial.as_deref()),
        ];
        verdicts.contains(&Some(true)) && !verdicts.contains(&Some(false))
    }
}

impl Identity {
    /// True when nothing was reported that could be compared with what is configured.
    pub(crate) fn is_unanswered_by(&self, reported: &ReportedIdentity) -> bool {
        compare(self.uuid.as_deref(), reported.uuid.as_deref()).is_none()
            && compare(self.serial.as_deref(), reported.serial.as_deref()).is_none()
    }
}

/// `None` when one of the sides says nothing.
fn compare(configured: Option<&str>, reported: Option<&str>) -> Option<bool> {
    Some(significant(configured?)? == significant(reported?)?)
}

fn write_pair(f: &mut fmt::Formatter<'_>, uuid: Option<&str>, serial: Option<&str>) -> fmt::Result {
    let shown = |value: Option<&str>| value.map_or_else(|| "-".to_owned(), |v| v.chars().take(64).collect());
    write!(f, "UUID {}, serial {}", shown(uuid), shown(serial))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_pair(f, self.uuid.as_deref(), self.serial.as_deref())
    }
}

impl fmt::Display for ReportedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outlet) = &self.outlet {
            return f.write_str(outlet);
        }
        write_pair(f, self.uuid.as_deref(), self.serial.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(uuid: Option<&str>, serial: Option<&str>) -> ReportedIdentity {
        ReportedIdentity { uuid: uuid.map(Into::into), serial: serial.map(Into::into), outlet: None }
    }

    #[test]
    fn case_and_dashes_do_not_matter() {
        let identity = Identity::by_uuid("4C4C4544-0035-3410-8050-C6C04F314733");
        assert!(identity.matches(&reported(Some("4c4c454400353410 8050c6c04f314733"), None)));
        assert!(Identity::by_serial("abc-12 3").matches(&reported(None, Some("ABC123"))));
    }

    #[test]
    fn one_contradiction_outweighs_one_agreement() {
        let both = Identity { uuid: Some("4c4c4544".into()), serial: Some("S1".into()) };
        assert!(both.matches(&reported(Some("4C4C4544"), None)));
        assert!(both.matches(&reported(None, Some("s1"))));
        assert!(!both.matches(&reported(Some("4C4C4544"), Some("S2"))));
        assert!(!both.matches(&reported(Some("other"), Some("S1"))));
    }

    #[test]
    fn silence_is_no_match() {
        assert!(!Identity::by_uuid("4c4c4544").matches(&reported(None, Some("S1"))));
        assert!(!Identity::default().matches(&reported(None, None)));
        assert!(!Identity::default().matches(&reported(Some("4c4c4544"), Some("S1"))));
    }

    #[test]
    fn placeholders_identify_nobody() {
        for filler in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "To Be Filled By O.E.M.",
            "N/A",
            " ",
            "Default string",
        ] {
            assert!(!Identity::by_serial(filler).is_usable(), "{filler}");
            assert!(!Identity::by_uuid(filler).matches(&reported(Some(filler), Some(filler))), "{filler}");
        }
        assert!(Identity::by_serial("F54P1G3").is_usable());
    }
}
