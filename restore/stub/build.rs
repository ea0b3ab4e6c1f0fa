//! Links the stub as flat, position-independent code: no libc, no start files, nothing writable, no relocations.
//!
//! `-z rodynamic` and `-z norelro` are rust-lld's (the default linker of this target): without them the dynamic
//! section, which nobody reads here, would be the only writable segment.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-Wl,--no-undefined",
        "-Wl,--no-dynamic-linker",
        "-Wl,--gc-sections",
        "-Wl,-z,rodynamic",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
