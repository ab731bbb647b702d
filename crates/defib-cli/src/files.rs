//! The operator's own file: how to reach the cluster.

use std::path::Path;

use defib_pki::TlsFiles;
use defib_process::{read_text, read_yaml};
use serde::Deserialize;

use crate::cluster::Failure;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The cluster's name, as in the certificate.
    pub(crate) cluster: String,
    /// Its replicas.
    pub(crate) replicas: Vec<Replica>,
    /// The operator's certificate.
    pub(crate) tls: TlsFiles,
}

/// One replica.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replica {
    /// Its number.
    pub(crate) id: u64,
    /// Its control address.
    pub(crate) address: String,
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        read_yaml(path, |_| Ok(())).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Reads a file, or says which one can't be read.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    read_text(path).map_err(|error| Failure::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_an_error_with_file_and_line() {
        let text = "cluster: a\nreplicas: []\nnonsense: 1\ntls: {certificate: a, key: b, authority: c}\n";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.yaml");
        std::fs::write(&path, text).unwrap();
        let error = Config::load(&path).expect_err("refused").to_string();
        assert!(error.contains("operator.yaml:3:1: unknown field `nonsense`"), "{error}");
    }
}
