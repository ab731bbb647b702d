//! Where a BMC has what: pages of the emulator's own, or the answers of a real server that lie in a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use super::config::SystemConfig;
use super::events;
use super::pages;

/// An action of a resource, and what its `ResetType` may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) target: String,
    pub(crate) allowed: Vec<String>,
}

impl Action {
    /// Whether a request to `path` with this reset type is one that the service offers.
    pub(crate) fn takes(&self, kind: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == kind)
    }
}

/// Where one system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: String,
    pub(crate) reset: Action,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The captured answers: `…/index.json` is the body of `GET …`.
    folder: Option<PathBuf>,
    pub(crate) sessions: String,
    /// As many as there are systems, in the same order.
    pub(crate) places: Vec<Place>,
    pub(crate) managers: Vec<Action>,
    /// The stream of events.
    pub(crate) events: Option<String>,
    /// The collection of subscriptions to them.
    pub(crate) subscriptions: Option<String>,
}

impl Layout {
    /// The emulator's own pages.
    pub(crate) fn own(systems: &[SystemConfig]) -> Self {
        let action = |path: &str, name: &str, allowed: &[&str]| Action {
            target: format!("{path}/Actions/{name}"),
            allowed: allowed.iter().map(|&kind| kind.to_owned()).collect(),
        };
        let place = |system: &SystemConfig| {
            let path = format!("{}/{}", pages::SYSTEMS, system.id);
            Place { reset: action(&path, "ComputerSystem.Reset", &pages::RESET_TYPES), path }
        };
        Self {
            folder: None,
            sessions: pages::SESSIONS.to_owned(),
            places: systems.iter().map(place).collect(),
            managers: vec![action(pages::MANAGER, "Manager.Reset", &["GracefulRestart", "ForceRestart"])],
            events: Some(events::STREAM.to_owned()),
            subscriptions: Some(events::SUBSCRIPTIONS.to_owned()),
        }
    }

    /// The answers in `folder`, and the systems that they tell of, all on.
    pub(crate) fn captured(folder: &Path) -> anyhow::Result<(Self, Vec<SystemConfig>)> {
        let mut layout = Self {
            folder: Some(folder.to_owned()),
            sessions: String::new(),
            places: Vec::new(),
            managers: Vec::new(),
            events: None,
            subscriptions: None,
        };
        let root = layout.must(pages::ROOT)?;
        layout.sessions = linked(&root["Links"]["Sessions"]).context("its service root names no sessions")?;
        let mut systems = Vec::new();
        for path in layout.members(&root["Systems"])? {
            let page = layout.must(&path)?;
            let text = |name: &str| page.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            systems.push(SystemConfig {
                id: text("Id"),
                uuid: text("UUID"),
                serial: text("SerialNumber"),
                host: None,
                power_on: true,
            });
            let reset = layout.action(&page["Actions"]["#ComputerSystem.Reset"]);
            layout.places.push(Place { reset: reset.context("a system offers no reset")?, path });
        }
        for path in layout.members(&root["Managers"])? {
            let page = layout.must(&path)?;
            layout.managers.extend(layout.action(&page["Actions"]["#Manager.Reset"]));
        }
        let service = linked(&root["EventService"]).and_then(|path| layout.page(&path)).unwrap_or_default();
        if service["ServiceEnabled"] == true {
            layout.events = service["ServerSentEventUri"].as_str().map(str::to_owned);
            layout.subscriptions = linked(&service["Subscriptions"]);
        }
        if systems.is_empty() {
            bail!("there is no system in {}", folder.display());
        }
        Ok((layout, systems))
    }

    /// A captured answer; `None` also where no answers were captured.
    pub(crate) fn page(&self, path: &str) -> Option<Value> {
        let inside = path.strip_prefix('/')?;
        if inside.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return None;
        }
        let file = self.folder.as_ref()?.join(inside).join("index.json");
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Whether the answers are a real server's.
    pub(crate) fn is_captured(&self) -> bool {
        self.folder.is_some()
    }

    fn must(&self, path: &str) -> anyhow::Result<Value> {
        let folder = self.folder.as_deref().unwrap_or_else(|| Path::new(""));
        self.page(path).with_context(|| format!("no answer to GET {path} in {}", folder.display()))
    }

    fn members(&self, collection: &Value) -> anyhow::Result<Vec<String>> {
        let path = linked(collection).context("its service root names no systems or no managers")?;
        let members = self.must(&path)?;
        let members = members["Members"].as_array().context("a collection without members")?;
        Ok(members.iter().filter_map(linked).collect())
    }

    fn action(&self, action: &Value) -> Option<Action> {
        let target = action.get("target")?.as_str()?.to_owned();
        let strings = |values: &Value| -> Option<Vec<String>> {
            Some(values.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        let allowed = strings(&action["ResetType@Redfish.AllowableValues"]).or_else(|| {
            let info = self.page(action["@Redfish.ActionInfo"].as_str()?)?;
            let parameters = info["Parameters"].as_array()?.clone();
            strings(&parameters.iter().find(|one| one["Name"] == "ResetType")?["AllowableValues"])
        });
        Some(Action { target, allowed: allowed.unwrap_or_default() })
    }
}

fn linked(link: &Value) -> Option<String> {
    Some(link.get("@odata.id")?.as_str()?.trim_end_matches('/').to_owned())
}
