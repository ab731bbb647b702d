//! What a program of `fence-agents` says of itself: its options and its actions, as XML.

use std::collections::{BTreeMap, BTreeSet};

/// An option.
#[derive(Debug, Default)]
struct Parameter {
    required: bool,
    /// The older name of the same thing.
    obsoletes: Option<String>,
    deprecated: bool,
}

/// What it says.
#[derive(Debug, Default)]
pub struct Metadata {
    parameters: BTreeMap<String, Parameter>,
    actions: BTreeSet<String>,
}

impl Metadata {
    /// From what `-o metadata` prints.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document = roxmltree::Document::parse(text.trim_start())
            .map_err(|error| format!("its metadata can't be read ({error})"))?;
        let root = document.root_element();
        if root.tag_name().name() != "resource-agent" {
            return Err(format!(
                "its metadata begin with {:?}, not with resource-agent",
                root.tag_name().name()
            ));
        }
        let mut metadata = Self::default();
        for node in root.descendants() {
            let Some(name) = node.attribute("name") else { continue };
            match node.tag_name().name() {
                "parameter" => {
                    let parameter = Parameter {
                        required: node.attribute("required") == Some("1"),
                        obsoletes: node.attribute("obsoletes").map(str::to_owned),
                        deprecated: node.attribute("deprecated") == Some("1"),
                    };
                    metadata.parameters.insert(name.to_owned(), parameter);
                }
                "action" => {
                    metadata.actions.insert(name.to_owned());
                }
                _ => {}
            }
        }
        Ok(metadata)
    }

    /// The names of the options that user and password are told by.
    pub fn login(&self) -> (&'static str, &'static str) {
        let known = |name: &str| self.parameters.contains_key(name);
        (
            if known("username") { "username" } else { "login" },
            if known("password") { "password" } else { "passwd" },
        )
    }

    /// What stands against telling it these options.
    pub fn fits(
        &self,
        options: &BTreeMap<String, String>,
        credentials: bool,
        outlets: bool,
    ) -> Result<(), String> {
        if let Some(unknown) = options.keys().find(|name| !self.parameters.contains_key(*name)) {
            let known: Vec<&str> = self
                .parameters
                .iter()
                .filter(|(_, parameter)| !parameter.deprecated)
                .map(|(name, _)| name.as_str())
                .collect();
            return Err(format!("there is no option {unknown:?} among {}", known.join(", ")));
        }
        let (user, password) = self.login();
        for (name, parameter) in self.parameters.iter().filter(|(_, parameter)| parameter.required) {
            let given = |name: &str| {
                options.contains_key(name)
                    || name == "action"
                    || (credentials && (name == user || name == password))
            };
            let older = parameter.obsoletes.as_deref().is_some_and(given);
            // Of two names for one thing, the newer one asks for both.
            if !parameter.deprecated && !given(name) && !older {
                return Err(format!("its option {name:?} is required and missing"));
            }
        }
        if credentials && !(self.parameters.contains_key(user) && self.parameters.contains_key(password)) {
            return Err("it takes no user name and password, but credentials are given".to_owned());
        }
        for action in ["off", "status"] {
            if !self.actions.contains(action) {
                return Err(format!("it has no action {action:?}, so nothing could ever be proven with it"));
            }
        }
        if outlets && !self.actions.contains("list") {
            return Err(
                "it can't list the names of its outlets; leave out `outlet` and say `trust-address: true`"
                    .to_owned(),
            );
        }
        if outlets && !["plug", "port"].iter().any(|name| options.contains_key(*name)) {
            return Err("an outlet is named, but no plug".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PDU: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_pdu" shortdesc="x" >
<longdesc>x</longdesc>
<parameters>
 <parameter name="action" unique="0" required="1"><content type="string" default="reboot"/></parameter>
 <parameter name="ip" unique="0" required="1" obsoletes="ipaddr"/>
 <parameter name="ipaddr" unique="0" required="1" deprecated="1"/>
 <parameter name="plug" unique="0" required="1" obsoletes="port"/>
 <parameter name="port" unique="0" required="1" deprecated="1"/>
 <parameter name="username" required="0" obsoletes="login"/>
 <parameter name="password" required="0" obsoletes="passwd"/>
</parameters>
<actions> <action name="off"/> <action name="status"/> <action name="list"/> </actions>
</resource-agent>"#;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_it_does_not_know_and_what_it_misses_is_named() {
        let metadata = Metadata::parse(PDU).unwrap();
        let good = options(&[("ip", "1"), ("plug", "3")]);
        assert_eq!(metadata.fits(&good, true, true), Ok(()));
        assert_eq!(
            metadata.fits(&options(&[("ipaddr", "1"), ("port", "3")]), false, true),
            Ok(()),
            "older names"
        );
        let why = |given: &[(&str, &str)]| metadata.fits(&options(given), false, false).unwrap_err();
        assert!(
            why(&[("ip", "1"), ("plgu", "3")])
                .contains("no option \"plgu\" among action, ip, password, plug")
        );
        assert!(why(&[("ip", "1")]).contains("\"plug\" is required"));
        assert_eq!(metadata.login(), ("username", "password"));
    }

    #[test]
    fn an_agent_without_status_without_list_or_without_login_is_refused() {
        let good = options(&[("ip", "1"), ("plug", "3")]);
        let fits = |text: &str, credentials| Metadata::parse(text).unwrap().fits(&good, credentials, true);
        assert!(
            fits(&PDU.replace("\"status\"", "\"x\""), false).unwrap_err().contains("no action \"status\"")
        );
        assert!(fits(&PDU.replace("\"list\"", "\"x\""), false).unwrap_err().contains("trust-address"));
        assert!(fits(&PDU.replace("\"password\"", "\"x\""), true).unwrap_err().contains("no user name"));
    }

    #[test]
    fn other_output_is_no_metadata() {
        for other in ["", "usage: fence_x", "<a name='x'/>", "<!DOCTYPE a><resource-agent/>"] {
            assert!(Metadata::parse(other).is_err(), "{other}");
        }
    }
}
