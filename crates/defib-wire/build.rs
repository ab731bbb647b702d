//! Generates Rust from the schemas. Protox is a compiler in Rust, so no `protoc` is needed.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> = fs::read_dir("proto/defib/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // They carry secrets, so their Debug is written by hand.
        .skip_debug([".defib.v1.Welcome", ".defib.v1.JoinRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
