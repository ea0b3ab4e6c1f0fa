//! Links the shim as a library that needs nothing: no libc, no start files, its constructor before all others.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-Wl,--no-undefined",
        "-Wl,-z,initfirst",
        "-Wl,-z,now",
        "-Wl,-z,noexecstack",
        "-Wl,-soname,zhuque-shim.so",
        "-Wl,-init,zhuque_constructor",
    ] {
        println!("cargo:rustc-link-arg-cdylib={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
