//! The restore stub, built as the launcher's build builds it: by a cargo of its own, always optimised.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The stub's ELF file.
pub fn stub() -> &'static [u8] {
    static STUB: OnceLock<Vec<u8>> = OnceLock::new();
    STUB.get_or_init(|| std::fs::read(build()).expect("the stub was built"))
}

fn build() -> PathBuf {
    // As for the launcher's build: a directory with files that are built already.
    if let Some(directory) = std::env::var_os("ZHUQUE_GUEST_DIR") {
        return Path::new(&directory).join("zhuque-stub");
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stub");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "zhuque-stub", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the stub does not build");
    target.join("release/zhuque-stub")
}
