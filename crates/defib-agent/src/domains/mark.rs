//! The mark by which a domain is ours: an element in its metadata, with VM, incarnation, epoch and host. A domain
//! without it is never touched. It is written into the definition that starts the domain, so there is no moment
//! without it.

use std::fmt::Write as _;

use defib_model::{Epoch, HostId, Incarnation, VmId};
use roxmltree::{Document, Node};

/// The namespace of the mark.
pub const NAMESPACE: &str = "https://defib.dev/xmlns/libvirt/1";

/// What stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Which VM it is.
    pub vm: VmId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// In which epoch of its host it was started.
    pub epoch: Epoch,
}

impl Mark {
    /// From the element that libvirt gives back when it is asked for the one of `NAMESPACE`: it has taken the
    /// namespace off.
    pub fn answered(xml: &str) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let node = document.root_element();
        if node.tag_name().namespace().is_some_and(|namespace| namespace != NAMESPACE) {
            return None;
        }
        Self::read(node)
    }

    fn of(node: Node<'_, '_>) -> Option<Self> {
        if node.tag_name().namespace() == Some(NAMESPACE) { Self::read(node) } else { None }
    }

    fn read(node: Node<'_, '_>) -> Option<Self> {
        if node.tag_name().name() != "vm" {
            return None;
        }
        let number = |name| node.attribute(name)?.parse().ok();
        Some(Self {
            vm: VmId::new(node.attribute("vm")?).ok()?,
            incarnation: Incarnation(number("incarnation")?),
            epoch: Epoch(number("epoch")?),
        })
    }

    /// The mark anywhere in a document, such as a status file of libvirt's.
    pub fn find(document: &Document<'_>) -> Option<Self> {
        document.descendants().find_map(Self::of)
    }
}

/// The first child of that name.
pub fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.tag_name().name() == name)
}

/// A definition with the mark in it. The definition must name the VM and give it a UUID: on every host it is the
/// same machine.
pub fn marked(
    definition: &str,
    vm: &VmId,
    incarnation: Incarnation,
    epoch: Epoch,
    host: &HostId,
) -> Result<String, String> {
    let document =
        Document::parse(definition).map_err(|error| format!("its definition is no XML: {error}"))?;
    let domain = document.root_element();
    if domain.tag_name().name() != "domain" {
        return Err(format!("its definition is a <{}>, not a <domain>", domain.tag_name().name()));
    }
    let name = child(domain, "name").ok_or("its definition has no <name>")?;
    if name.text().map(str::trim) != Some(vm.as_str()) {
        let given = name.text().unwrap_or_default();
        return Err(format!("its definition names a domain {given:?}; it must have the VM's name"));
    }
    if child(domain, "uuid").and_then(|uuid| uuid.text()).is_none_or(|uuid| uuid.trim().is_empty()) {
        return Err(
            "its definition has no <uuid>; without one it would be another machine on each host".into()
        );
    }
    let mut mark = String::new();
    let _ = write!(
        mark,
        "<defib:vm xmlns:defib='{NAMESPACE}' vm='{vm}' incarnation='{incarnation}' epoch='{epoch}' host='{host}'/>"
    );
    let Some(metadata) = child(domain, "metadata") else {
        let at = name.range().end;
        return Ok(format!("{}<metadata>{mark}</metadata>{}", &definition[..at], &definition[at..]));
    };
    // What others keep there stays, with the names that its prefixes stand for; what is ours goes, a mark of a former
    // life or one that can't be read: libvirt keeps one element of a namespace.
    let mut inside = String::new();
    for kept in
        metadata.children().filter(|node| node.is_element() && node.tag_name().namespace() != Some(NAMESPACE))
    {
        inside.push_str(&definition[kept.range()]);
    }
    let whole = metadata.range();
    let open = whole.start + end_of_start_tag(&definition[whole.clone()]);
    let tag = definition[whole.start..open].trim_end_matches('/');
    Ok(format!("{}{tag}>{mark}{inside}</metadata>{}", &definition[..whole.start], &definition[whole.end..]))
}

/// Where the `>` stands that ends the tag which `element` begins with: one in an attribute's value does not end it.
fn end_of_start_tag(element: &str) -> usize {
    let mut quote = None;
    let end = element.char_indices().find(|(_, letter)| {
        match quote {
            Some(begun) if begun == *letter => quote = None,
            None if matches!(letter, '"' | '\'') => quote = Some(*letter),
            Some(_) | None => {}
        }
        quote.is_none() && *letter == '>'
    });
    end.map_or(element.len(), |(at, _)| at)
}

/// The mark as an element, for a domain that runs already: libvirt adds the namespace itself.
pub fn element(vm: &VmId, incarnation: Incarnation, epoch: Epoch, host: &HostId) -> String {
    format!("<vm vm='{vm}' incarnation='{incarnation}' epoch='{epoch}' host='{host}'/>")
}

/// The UUID in a definition.
pub fn uuid_of(definition: &str) -> Option<String> {
    let document = Document::parse(definition).ok()?;
    let uuid = child(document.root_element(), "uuid")?.text()?.trim().to_ascii_lowercase();
    Some(uuid)
}

/// The state of the guest agent's channel; `None`: there is none.
pub fn agent_channel(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let target = document.descendants().find(|node| {
        node.tag_name().name() == "target" && node.attribute("name") == Some("org.qemu.guest_agent.0")
    })?;
    Some(target.attribute("state").unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmId {
        VmId::new("cp-1").unwrap()
    }

    fn mark(definition: &str, incarnation: u64) -> Result<String, String> {
        marked(definition, &vm(), Incarnation(incarnation), Epoch(7), &HostId::new("h1").unwrap())
    }

    fn found(xml: &str) -> Mark {
        Mark::find(&Document::parse(xml).unwrap()).unwrap()
    }

    const BARE: &str =
        "<domain type='qemu'>\n  <name>cp-1</name><uuid>1-2</uuid>\n  <memory>1</memory></domain>";

    #[test]
    fn a_definition_gets_one_mark_and_keeps_all_the_rest() {
        let first = mark(BARE, 3).unwrap();
        assert_eq!(found(&first), Mark { vm: vm(), incarnation: Incarnation(3), epoch: Epoch(7) });
        assert!(first.contains("<memory>1</memory>") && first.starts_with("<domain type='qemu'>"), "{first}");
        // The definition that a host's libvirt gave back, mark and all.
        let second = mark(&first, 4).unwrap();
        assert_eq!(second.matches("<defib:vm").count(), 1, "{second}");
        assert_eq!(found(&second).incarnation, Incarnation(4));
        let garbled = BARE.replace(
            "</uuid>",
            "</uuid><metadata><d:vm xmlns:d='https://defib.dev/xmlns/libvirt/1' vm='cp-1' incarnation='x'/></metadata>",
        );
        assert_eq!(
            mark(&garbled, 5).unwrap().matches(NAMESPACE).count(),
            1,
            "one that can't be read goes, too"
        );
        let others = BARE.replace(
            "</uuid>",
            "</uuid><metadata xmlns:a='urn:a'>\n<a:os id='x'>y</a:os>\n</metadata><title>t</title>",
        );
        let kept = mark(&others, 5).unwrap();
        assert!(
            kept.contains("<metadata xmlns:a='urn:a'><defib:vm")
                && kept.contains("<a:os id='x'>y</a:os></metadata>")
        );
        assert_eq!(found(&kept).incarnation, Incarnation(5));
        assert_eq!(
            found(&mark(&BARE.replace("</uuid>", "</uuid><metadata/>"), 6).unwrap()).incarnation,
            Incarnation(6)
        );
    }

    #[test]
    fn a_tag_does_not_end_in_an_attribute() {
        let tags = ["<metadata xmlns:a='urn:]]>a'", "<metadata xmlns:a=\"urn:a\" a:is='\">' a:to=\">'\""];
        for tag in tags {
            for rest in ["><a:os>y</a:os></metadata>", "></metadata>", "/>"] {
                let made = mark(&BARE.replace("</uuid>", &format!("</uuid>{tag}{rest}")), 5).unwrap();
                assert_eq!(found(&made).incarnation, Incarnation(5), "{made}");
                assert!(made.contains(&format!("{tag}><defib:vm")), "{made}");
                assert_eq!(made.contains("<a:os>y</a:os></metadata>"), rest.contains("a:os"), "{made}");
            }
        }
    }

    #[test]
    fn a_definition_of_another_vm_or_of_a_changing_machine_is_refused() {
        for (from, to, why) in [
            ("cp-1", "cp-2", "names a domain \"cp-2\""),
            ("<uuid>1-2</uuid>", "", "no <uuid>"),
            ("<name>cp-1</name>", "", "no <name>"),
            ("</domain>", "", "no XML"),
        ] {
            assert!(mark(&BARE.replace(from, to), 1).unwrap_err().contains(why), "{why}");
        }
        assert!(mark("<network/>", 1).unwrap_err().contains("not a <domain>"));
    }

    #[test]
    fn a_foreign_element_is_no_mark() {
        for other in [
            "<vm vm='cp-1' incarnation='1' epoch='1'/>",
            "<x:vm xmlns:x='urn:other' vm='cp-1' incarnation='1' epoch='1'/>",
            "<d:vm xmlns:d='https://defib.dev/xmlns/libvirt/1' vm='cp-1' incarnation='one' epoch='1'/>",
        ] {
            assert_eq!(Mark::find(&Document::parse(other).unwrap()), None, "{other}");
        }
        for other in [
            "<x:vm xmlns:x='urn:other' vm='cp-1' incarnation='1' epoch='1'/>",
            "<vm vm='cp-1' incarnation='one' epoch='1'/>",
            "<os vm='cp-1' incarnation='1' epoch='1'/>",
            "nonsense",
        ] {
            assert_eq!(Mark::answered(other), None, "{other}");
        }
        // As libvirt 9.0 answers.
        let written = element(&vm(), Incarnation(1), Epoch(7), &HostId::new("h1").unwrap());
        let ours = Mark::answered("<vm vm='cp-1' incarnation='1' epoch='7' host='h1'/>");
        assert_eq!(ours, Some(Mark { vm: vm(), incarnation: Incarnation(1), epoch: Epoch(7) }));
        assert_eq!(Mark::answered(&written), ours);
    }

    #[test]
    fn the_guest_agent_is_there_when_its_channel_is_connected() {
        let xml = "<domain><devices><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' \
                   state='connected'/></channel></devices></domain>";
        assert_eq!(agent_channel(xml).as_deref(), Some("connected"));
        assert_eq!(
            agent_channel(&xml.replace("'connected'", "'disconnected'")).as_deref(),
            Some("disconnected")
        );
        assert_eq!(agent_channel("<domain/>"), None);
    }
}
