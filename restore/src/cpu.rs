//! Which processor features a saved program needs.
//!
//! A program chooses its code paths once (glibc's ifuncs, a JIT's probes) and keeps pointers to them, so all that it
//! could see when it started must be there when it goes on. Only what a program can notice counts: bits about the
//! kernel's mitigations, power or virtualisation change with every microcode update.
//!
//! Neighbours: [`crate::validate`] compares; the launcher and the shim ask the processor.

use crate::Error;

/// What this machine's processor and kernel offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// XCR0: state components that are enabled.
    pub xcr0: u64,
    /// Words of cpuid, as in [`zhuque_abi::header::Header::cpu_features`].
    pub features: [u32; 6],
    /// Bytes of a signal frame's extended state with all of XCR0 enabled.
    pub xsave_bytes: u64,
}

/// Bits that a program can notice: word of [`Machine::features`], bit, name as in /proc/cpuinfo.
const FEATURES: &[(usize, u32, &str)] = &[
    (0, 0, "sse3"),
    (0, 1, "pclmulqdq"),
    (0, 9, "ssse3"),
    (0, 12, "fma"),
    (0, 13, "cx16"),
    (0, 19, "sse4_1"),
    (0, 20, "sse4_2"),
    (0, 22, "movbe"),
    (0, 23, "popcnt"),
    (0, 25, "aes"),
    (0, 26, "xsave"),
    (0, 27, "osxsave"),
    (0, 28, "avx"),
    (0, 29, "f16c"),
    (0, 30, "rdrand"),
    (1, 4, "tsc"),
    (1, 8, "cx8"),
    (1, 15, "cmov"),
    (1, 19, "clflush"),
    (1, 23, "mmx"),
    (1, 24, "fxsr"),
    (1, 25, "sse"),
    (1, 26, "sse2"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 8, "bmi2"),
    (2, 11, "rtm"),
    (2, 16, "avx512f"),
    (2, 17, "avx512dq"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 21, "avx512ifma"),
    (2, 23, "clflushopt"),
    (2, 24, "clwb"),
    (2, 26, "avx512pf"),
    (2, 27, "avx512er"),
    (2, 28, "avx512cd"),
    (2, 29, "sha_ni"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (3, 1, "avx512vbmi"),
    (3, 4, "ospke"),
    (3, 5, "waitpkg"),
    (3, 6, "avx512_vbmi2"),
    (3, 8, "gfni"),
    (3, 9, "vaes"),
    (3, 10, "vpclmulqdq"),
    (3, 11, "avx512_vnni"),
    (3, 12, "avx512_bitalg"),
    (3, 14, "avx512_vpopcntdq"),
    (3, 22, "rdpid"),
    (3, 27, "movdiri"),
    (3, 28, "movdir64b"),
    (4, 2, "avx512_4vnniw"),
    (4, 3, "avx512_4fmaps"),
    (4, 8, "avx512_vp2intersect"),
    (4, 14, "serialize"),
    (4, 16, "tsxldtrk"),
    (4, 22, "amx_bf16"),
    (4, 23, "avx512_fp16"),
    (4, 24, "amx_tile"),
    (4, 25, "amx_int8"),
    (5, 0, "xsaveopt"),
    (5, 1, "xsavec"),
    (5, 2, "xgetbv1"),
];

/// Names of the state components in XCR0, by bit.
const COMPONENTS: &[(u32, &str)] = &[
    (0, "x87"),
    (1, "sse"),
    (2, "avx"),
    (3, "mpx"),
    (4, "mpx"),
    (5, "avx512"),
    (6, "avx512"),
    (7, "avx512"),
    (9, "protection keys"),
    (17, "amx"),
    (18, "amx"),
];

impl Machine {
    /// Whether a program saved with these words can go on here; names the first thing that is missing.
    pub fn covers(&self, xcr0: u64, features: &[u32; 6], xsave_bytes: u64) -> Result<(), Error> {
        for &(word, bit, name) in FEATURES {
            if features[word] & !self.features[word] & (1 << bit) != 0 {
                return Err(Error::Processor(name.to_owned()));
            }
        }
        let missing = xcr0 & !self.xcr0;
        if missing != 0 {
            let bit = missing.trailing_zeros();
            let known = COMPONENTS.iter().find(|c| c.0 == bit);
            let name = known.map_or_else(|| format!("component {bit}"), |c| c.1.to_owned());
            return Err(Error::Processor(format!("{name} register state")));
        }
        // The kernel silently drops all but the SSE registers of a frame that is larger than its own
        // (arch/x86/kernel/fpu/signal.c, check_xstate_in_sigframe).
        if xsave_bytes > self.xsave_bytes {
            return Err(Error::VectorState { saved: xsave_bytes, here: self.xsave_bytes });
        }
        Ok(())
    }
}
