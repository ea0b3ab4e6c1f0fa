//! Everything that can be wrong with a region or a machine, as one line: what, why, what to do.
//!
//! The launcher puts `cannot resume NAME: ` in front. Neighbours: `validate`, `plan`, `holes`, `numbers` and
//! `stub_image` return these.

use zhuque_abi::header::VERSION;

/// Why a region cannot be resumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The control file is shorter than its layout.
    #[error(
        "its control file has {bytes} bytes instead of {wanted}: the region is damaged; remove it with `zhuque rm`"
    )]
    Short {
        /// Bytes there are.
        bytes: usize,
        /// Bytes there should be.
        wanted: usize,
    },
    /// No magic.
    #[error("its control file is not zhuque's: the region is damaged or something else; remove it by hand")]
    Magic,
    /// Another version of the layout.
    #[error("it was written in format {0}, this zhuque reads {VERSION}: use the zhuque that saved it")]
    Version(u32),
    /// The header has another size than this version's.
    #[error(
        "its header has {0} bytes, which no format {VERSION} has: the region is damaged; remove it with `zhuque rm`"
    )]
    HeaderSize(u32),
    /// The launcher or the shim had not finished setting it up.
    #[error("the program had not started yet when it ended: nothing was saved; start it again with `zhuque run`")]
    NotStarted,
    /// It ran and was not saved.
    #[error(
        "the program died while it ran, before it could be saved: its registers are lost; remove it with `zhuque rm`"
    )]
    NeverSaved,
    /// The program ended by itself.
    #[error("the program has ended by itself ({0}): there is nothing to go on with; remove it with `zhuque rm`")]
    Ended(String),
    /// A save was not complete.
    #[error("its last save was not complete ({0}): it cannot go on; remove it with `zhuque rm`")]
    Unsaved(String),
    /// The phase word has a phase that does not exist.
    #[error("its phase {0} does not exist: the region is damaged; remove it with `zhuque rm`")]
    Phase(u8),
    /// A checksum does not match.
    #[error("the checksum of its {0} does not match: the region is damaged; remove it with `zhuque rm`")]
    Checksum(&'static str),
    /// A value that cannot be.
    #[error("{what} is {value:#x}, which cannot be: the region is damaged; remove it with `zhuque rm`")]
    Bounds {
        /// Name of the value.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// The mapping table or the journal contradicts itself.
    #[error("{0}: the region is damaged; remove it with `zhuque rm`")]
    Damaged(String),
    /// The journal names something that this version cannot re-create.
    #[error("it holds {0}, which this version cannot re-create: close it before a save")]
    Unsupported(String),
    /// A processor feature is missing here.
    #[error("this processor has no {0}, which the program may use: resume it on a machine like the one it ran on")]
    Processor(String),
    /// The saved register state is larger than what this kernel takes back.
    #[error(
        "its threads have {saved} bytes of vector registers, this machine restores {here}: resume it on a machine like \
         the one it ran on"
    )]
    VectorState {
        /// Bytes saved per thread.
        saved: u64,
        /// Bytes that this machine's signal frames hold.
        here: u64,
    },
    /// No place for the stub or the vdso.
    #[error("its address space has no hole of {0} bytes: there is no place to rebuild it from")]
    NoHole(u64),
    /// The hard limit on descriptors is too low.
    #[error(
        "a resume needs descriptor numbers up to {needed}, the hard limit is {limit}: raise it (ulimit -Hn {needed})"
    )]
    Descriptors {
        /// Numbers needed.
        needed: u64,
        /// RLIMIT_NOFILE's hard limit.
        limit: u64,
    },
    /// The process that is to become the program looks unlike any known.
    #[error("{0}: this kernel does something that zhuque does not know")]
    Kernel(&'static str),
    /// The stub that this zhuque carries is not usable; a mistake in its build.
    #[error("the restore stub is unusable ({0}): this zhuque was built wrongly")]
    Stub(&'static str),
}

impl Error {
    /// A value that cannot be.
    pub(crate) fn bounds(what: &'static str, value: u64) -> Error {
        Error::Bounds { what, value }
    }
}
