//! What a storage pool's definition says of it.

use roxmltree::Document;

use super::mark::child;

/// The kind of a pool, and the directory that it lies in; empty where it has none.
#[must_use]
pub fn kind_and_directory(xml: &str) -> Option<(String, String)> {
    let document = Document::parse(xml).ok()?;
    let root = document.root_element();
    let kind = root.attribute("type").unwrap_or_default().to_owned();
    let path = child(root, "target").and_then(|target| child(target, "path")).and_then(|path| path.text());
    let has_directory = matches!(kind.as_str(), "dir" | "fs" | "netfs" | "gluster" | "vstorage");
    let directory = path.filter(|_| has_directory).map(|path| path.trim().to_owned()).unwrap_or_default();
    Some((kind, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pool_of_files_has_a_directory() {
        let xml = |kind: &str| {
            format!("<pool type='{kind}'><name>a</name><target><path> /srv/a\n</path></target></pool>")
        };
        let told = |kind: &str| kind_and_directory(&xml(kind)).unwrap();
        assert_eq!(told("netfs"), ("netfs".into(), "/srv/a".into()));
        assert_eq!(told("rbd"), ("rbd".into(), String::new()));
        assert_eq!(kind_and_directory("<pool type='dir'/>"), Some(("dir".into(), String::new())));
        assert_eq!(kind_and_directory("nonsense"), None);
    }
}
