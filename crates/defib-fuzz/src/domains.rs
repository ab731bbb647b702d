//! What libvirt says in XML, and what becomes of a domain's definition.

use defib_agent::domains::{
    definition::{datastore, described},
    mark::{Mark, agent_channel, child, element, marked, uuid_of},
    pool::kind_and_directory,
    status,
};
use defib_model::{Epoch, HostId, Incarnation, VmId};
use defib_wire::v1;
use roxmltree::Document;

use crate::seeds::tagged;

/// First byte even: a definition, or anything else that libvirt says; odd: behind the definition of a pool, up to a
/// zero, that of a domain.
pub(crate) fn libvirt_xml(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if mode % 2 == 0 {
        definition(text);
        if let Some(mark) = Mark::answered(text) {
            assert!(text.contains(mark.vm.as_str()));
        }
        if let Some(status::Status { pid, .. }) = status::read(text) {
            assert!(pid.is_none_or(|pid| pid > 1), "whoever is signalled is one process");
        }
        let _ = (agent_channel(text), kind_and_directory(text));
    } else {
        let (pool, domain) = text.split_once('\0').unwrap_or((text, ""));
        let Some((kind, target)) = kind_and_directory(pool) else { return };
        let pools =
            [v1::FoundDatastore { name: "images".into(), kind, target, ..v1::FoundDatastore::default() }];
        if let Some(said) = described(domain) {
            let found = datastore(&said, &pools);
            assert!(found.is_empty() || found == "images" || said.pools.contains(&found), "{found:?}");
        }
    }
}

/// A definition that is taken becomes one with our mark, once, and says all else as before.
fn definition(text: &str) {
    let (vm, host) = (VmId::new("cp-1").expect("a name"), HostId::new("h1").expect("a name"));
    let mark = Mark { vm: vm.clone(), incarnation: Incarnation(3), epoch: Epoch(7) };
    let Ok(made) = marked(text, &vm, mark.incarnation, mark.epoch, &host) else { return };
    let document = Document::parse(&made).unwrap_or_else(|error| panic!("{error}: {made}"));
    assert_eq!(Mark::find(&document).as_ref(), Some(&mark), "{made}");
    let metadata = child(document.root_element(), "metadata").expect("it has metadata");
    let ours = metadata.children().filter(|node| node.tag_name().namespace() == Some(NAMESPACE));
    assert_eq!(ours.filter(|node| node.tag_name().name() == "vm").count(), 1, "{made}");
    assert_eq!((uuid_of(&made), described(&made)), (uuid_of(text), described(text)), "{made}");
    // The next life's definition may be what a host's libvirt gave back of this one.
    let again = marked(&made, &vm, Incarnation(4), mark.epoch, &host).expect("what was made is taken");
    let again = Document::parse(&again).expect("it is XML");
    assert_eq!(Mark::find(&again), Some(Mark { incarnation: Incarnation(4), ..mark.clone() }));
    assert_eq!(Mark::answered(&element(&vm, mark.incarnation, mark.epoch, &host)), Some(mark));
}

const NAMESPACE: &str = defib_agent::domains::mark::NAMESPACE;

pub(crate) fn libvirt_xml_seeds() -> Vec<Vec<u8>> {
    let bare = "<domain type='qemu'><name>cp-1</name><uuid>1-2</uuid><memory unit='GiB'>1</memory><vcpu>2</vcpu></domain>";
    let disks = "<os><nvram>/n.fd</nvram></os><devices><disk device='disk'><source file='/srv/a.img'/><target dev='vda'/></disk>\
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel></devices>";
    let policy = "<p:policy xmlns:p='https://defib.dev/xmlns/libvirt/policy/1' priority='high'/>";
    let old = format!("<d:vm xmlns:d='{NAMESPACE}' vm='cp-1' incarnation='2' epoch='6' host='h2'/>");
    let whole = bare.replace(
        "</uuid>",
        &format!("</uuid><metadata xmlns:a='urn:a'>{old}{policy}<a:os id='x'>y</a:os></metadata>{disks}"),
    );
    let pool = "<pool type='dir'><name>images</name><target><path>/srv</path></target></pool>";
    vec![
        tagged(0, bare),
        tagged(0, &whole),
        tagged(0, bare.replace("</uuid>", "</uuid><metadata/>")),
        tagged(0, "<vm vm='cp-1' incarnation='1' epoch='7' host='h1'/>"),
        tagged(0, format!("<domstatus state='running' pid='4711'>{whole}</domstatus>")),
        tagged(0, pool),
        tagged(1, format!("{pool}\0{whole}")),
    ]
}
