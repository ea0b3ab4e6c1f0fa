//! Builds what runs inside the guest (the shim and the restore stub) and hands it to `src/embedded.rs`.
//!
//! A cargo invocation of its own: built together with the launcher, feature unification could switch `std` on in
//! them. `ZHUQUE_GUEST_DIR` names a directory with files that are built already, for packagers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The files, as cargo names them and as `embedded.rs` does.
const FILES: [(&str, &str); 2] = [("libzhuque_shim.so", "zhuque-shim.so"), ("zhuque-stub", "zhuque-stub")];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("the launcher lies in the workspace");
    println!("cargo:rerun-if-env-changed=ZHUQUE_GUEST_DIR");
    let from = match env::var_os("ZHUQUE_GUEST_DIR") {
        Some(directory) => {
            println!("cargo:rerun-if-changed={}", directory.display());
            PathBuf::from(directory)
        }
        None => build(root, &out),
    };
    for (built, name) in FILES {
        let source = from.join(built);
        if let Err(error) = fs::copy(&source, out.join(name)) {
            fail(&format!("{}: {error}", source.display()));
        }
    }
    let shim = fs::read(out.join(FILES[0].1)).expect("it was just copied");
    println!("cargo:rustc-env=ZHUQUE_SHIM_HASH={:032x}", hash(&shim));
}

/// Builds them; the directory they are in.
fn build(root: &Path, out: &Path) -> PathBuf {
    for path in ["shim", "restore/stub", "Cargo.lock", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let target = out.join("guest");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--release", "-p", "zhuque-shim", "-p", "zhuque-stub", "--manifest-path"])
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    // What was meant for the launcher (coverage, sanitizers, clippy's wrapper, another target directory) must not
    // reach the guest.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
        let cargos =
            ["CARGO_ENCODED_", "CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "CARGO_FEATURE_", "CARGO_CFG_"];
        if ours.contains(&text.as_ref()) || cargos.iter().any(|start| text.starts_with(start)) {
            cargo.env_remove(&name);
        }
    }
    // Symbols stay; debug information would make every store and every zhuque three megabytes larger.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    match cargo.status() {
        Ok(status) if status.success() => target.join("release"),
        Ok(status) => fail(&format!("building the shim and the stub failed ({status}); see cargo's messages above")),
        Err(error) => fail(&format!("cannot run cargo: {error}")),
    }
}

/// FNV-1a of 128 bits: names a content; nothing rests on its being hard to forge.
fn hash(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// Ends the build with a message that cargo shows.
fn fail(message: &str) -> ! {
    println!("cargo:warning=zhuque: {message}");
    eprintln!("zhuque: {message}");
    std::process::exit(1);
}
