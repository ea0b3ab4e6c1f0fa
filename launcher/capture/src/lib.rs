//! # zhuque-capture: the registers of stopped threads, taken into their region
//!
//! A save from outside: whoever traces a program (the guardian, a test) has stopped every thread of it, each at whatever
//! instruction it was. [`Capture::thread`] writes a thread's registers into its slot, in the form in which the kernel
//! pushes them for a signal handler, so that a resume can return to them; [`Capture::lead`] then sends one thread to the
//! shim's `outside::lead`, which writes down what only the kernel holds and commits.
//!
//! * [`frame`]: the kernel's signal frame, from registers and extended state
//! * [`stopped`]: what ptrace(2) says of a stopped thread
//!
//! Nothing here decides *what* a thread was doing: the shim does, when the thread goes on (`shim/src/outside.rs`). What it
//! needs for that is in the region. The caller keeps to two rules: every thread of the program is in a ptrace stop, and
//! in none between the entry of a system call and its execution.

pub mod frame;
pub mod stopped;

use frame::{Frame, Place};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use stopped::Stopped;
use zhuque_abi::codec;
use zhuque_abi::header::{Header, MAGIC, Phase, VERSION};
use zhuque_abi::journal::Record;
use zhuque_abi::layout::{
    JOURNAL_OFFSET, LIFE_BYTES, LIFE_OFFSET, LIFE_SCRATCH, LIFE_SCRATCH_BYTES, LIFE_THREADS, MAX_THREADS, SLOT_STRIDE,
    SLOTS_OFFSET,
};
use zhuque_abi::life::{Life, LifeThread};
use zhuque_abi::slot::{SigInfo, Slot, pending, state};
use zhuque_abi::timers::SI_TIMER;

/// Why a program cannot be saved from outside.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// ptrace(2) or a file of /proc.
    #[error("{0}: {1}")]
    Kernel(&'static str, Errno),
    /// The control file.
    #[error("its control file: {0}")]
    Control(#[from] io::Error),
    /// The region is in no state for it.
    #[error("{0}")]
    Region(&'static str),
    /// A thread has not come to the program yet, at the beginning of a life. It is to be let go for a moment.
    #[error("a thread of it is being revived: try again")]
    Early,
    /// A thread that is none of the program's.
    #[error("thread {0} has no slot in the region")]
    NoSlot(Pid),
}

/// What became of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its registers are in the slot with this index.
    Slot(u32),
    /// It has given up its slot: all that is left of it is the kernel's exit. It is to be let go, and waited for, before
    /// [`Capture::lead`]: others may wait for what the kernel does there.
    Gone,
}

/// What part a thread can have in a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It can write down the rest.
    Leads,
    /// It can only be taken: it is being born, or on its way out.
    Follows,
    /// All that is left of it is the kernel's exit.
    Leaves,
}

/// A program that is being saved.
pub struct Capture<'a> {
    control: &'a File,
    base: u64,
    header: Words,
    /// A thread that can lead: its kernel id, and its slot.
    leader: Option<Pid>,
    /// The others that have been taken, with their ids as the program knows them.
    followers: Vec<(Pid, u32)>,
    /// Threads that have to end first.
    gone: Vec<Pid>,
}

/// What is needed of the header.
#[derive(Clone, Copy)]
struct Words {
    outside: u64,
    exit: [u64; 2],
    pid: u32,
    virtual_pid: u32,
}

impl<'a> Capture<'a> {
    /// Begins, with the region's control file.
    pub fn of(control: &'a File) -> Result<Capture<'a>, Error> {
        let word = |offset: usize| read_u64(control, offset as u64);
        let half = |offset: usize| word(offset).map(|value| value as u32);
        if word(offset_of!(Header, magic))? != MAGIC || half(offset_of!(Header, version))? != VERSION {
            return Err(Error::Region("the region is of another version"));
        }
        match Phase::from_raw(word(offset_of!(Header, phase))? as u8) {
            Some(Phase::Running) => {}
            Some(Phase::Creating | Phase::Starting) => return Err(Error::Region("the program has not started yet")),
            Some(Phase::Saved) => return Err(Error::Region("it is saved, and no life of it is under way")),
            _ => return Err(Error::Region("the program has ended")),
        }
        let header = Words {
            outside: word(offset_of!(Header, outside))?,
            exit: [word(offset_of!(Header, exit_first))?, word(offset_of!(Header, exit_end))?],
            pid: half(offset_of!(Header, pid))?,
            virtual_pid: half(offset_of!(Header, virtual_pid))?,
        };
        Ok(Capture {
            control,
            base: word(offset_of!(Header, base))?,
            header,
            leader: None,
            followers: Vec::new(),
            gone: Vec::new(),
        })
    }

    /// Whether a thread can be taken, and what can become of it. One look at every thread comes before the first is taken:
    /// what has been taken must not go on, so there must be one that can lead.
    pub fn check(&self, tid: Pid) -> Result<Part, Error> {
        let thread = Stopped::look(tid)?;
        if self.leaves(&thread) {
            return Ok(Part::Leaves);
        }
        let life = self.base + LIFE_OFFSET;
        if (life..life + LIFE_BYTES).contains(&thread.registers.rsp.wrapping_sub(1)) {
            return Err(Error::Early);
        }
        let index = self.slot_of(&thread).ok_or(Error::NoSlot(tid))?;
        Ok(if self.leads(&thread, index)? { Part::Leads } else { Part::Follows })
    }

    /// Whether it is itself in its slot, so that it can lead.
    fn leads(&self, thread: &Stopped, index: u32) -> Result<bool, Error> {
        let at = slot_at(index);
        let state = self.slot_u32(at, offset_of!(Slot, state))?;
        Ok(thread.registers.gs_base == self.base + at && state == state::LIVE)
    }

    /// Before a thread that has been stopped goes on, untaken: a call that the stop has ended with EINTR, as it does
    /// epoll_wait(2) (signal(7)), is issued again: by the gate where the thread is in its work, else by the kernel. Not while
    /// the program saves itself, which has the region as it is then.
    pub fn let_go(&self, tid: Pid) -> Result<(), Error> {
        let mut thread = Stopped::look(tid)?;
        let life = self.base + LIFE_OFFSET;
        let [announced] = stopped::read_words(tid, life + offset_of!(Life, announced_ns) as u64)?;
        let Some(index) = self.slot_of(&thread).filter(|_| announced == 0) else { return Ok(()) };
        let at = slot_at(index);
        let stacks = self.base + at..self.base + at + SLOT_STRIDE;
        if !stacks.contains(&thread.registers.rsp.wrapping_sub(1)) {
            return thread.begin_again();
        }
        let elsewhere = [offset_of!(Slot, borrowed), offset_of!(Slot, suspended)];
        for word in elsewhere {
            if self.slot_u32(at, word)? != 0 {
                return Ok(());
            }
        }
        let waiting = self.slot_u32(at, offset_of!(Slot, pending))? | pending::KICK;
        self.control.write_all_at(&waiting.to_le_bytes(), at + offset_of!(Slot, pending) as u64)?;
        Ok(())
    }

    /// Takes one thread. `stop` is the signal at whose delivery it has stopped, if it has: that comes again.
    pub fn thread(&mut self, tid: Pid, stop: Option<SigInfo>) -> Result<Taken, Error> {
        let mut thread = Stopped::look(tid)?;
        if self.leaves(&thread) {
            self.gone.push(tid);
            return Ok(Taken::Gone);
        }
        let index = self.slot_of(&thread).ok_or(Error::NoSlot(tid))?;
        let at = slot_at(index);
        let slot = self.base + at;
        if self.slot_u32(at, offset_of!(Slot, state))? == state::FREE {
            return Err(Error::NoSlot(tid));
        }
        thread.undo_dispatch()?;
        thread.end_call();
        thread.leave_rseq(self.slot_u64(at, offset_of!(Slot, rseq))?)?;
        let place = Place::in_slot(slot, thread.registers.rsp);
        let frame = Frame::new(&thread, &place).ok_or(Error::Region("a signal stack has no room"))?;
        self.control.write_all_at(&frame.bytes, at + (frame.address - slot))?;
        self.write_saved(index, &frame, &thread)?;
        let shown = self.slot_u32(at, offset_of!(Slot, virtual_tid))?;
        if self.leader.is_none() && self.leads(&thread, index)? {
            // What is pending for it, it writes down itself.
            self.leader = Some(tid);
        } else {
            self.followers.push((tid, shown));
        }
        if let Some(info) = stop {
            self.append(shown, info)?;
        }
        Ok(Taken::Slot(index))
    }

    /// Whether it has given up its slot.
    fn leaves(&self, thread: &Stopped) -> bool {
        (self.header.exit[0]..=self.header.exit[1]).contains(&thread.registers.rip)
    }

    /// Sends one of the threads to write down the rest, and returns it: it is to be let go, and stops once more (SIGTRAP)
    /// for [`Capture::finish`]. Every other one has been taken, and stays stopped.
    pub fn lead(&self) -> Result<Pid, Error> {
        if self.gone.iter().any(|tid| !stopped::has_ended(*tid)) {
            return Err(Error::Region("a thread of it is on its way out: it has to end first"));
        }
        let tid = self.leader.ok_or(Error::Region("no thread of it can lead the save"))?;
        let stack = self.base + LIFE_OFFSET + LIFE_SCRATCH + LIFE_SCRATCH_BYTES;
        // As at the entry of a function, behind a call.
        stopped::send_to(tid, self.header.outside, stack - 8)?;
        Ok(tid)
    }

    /// Writes down what is pending for the other threads, now that the one that leads has looked at the timers that may
    /// tell them. That one is to be let go then, without its signal, and ends the process.
    pub fn finish(self) -> Result<(), Error> {
        for &(tid, shown) in &self.followers {
            for info in stopped::pending(tid)? {
                self.append(shown, info)?;
            }
        }
        Ok(())
    }

    /// The slot of a thread: whose stacks it is on, else the one that its GS base names. A thread that has just been
    /// born has its parent's GS base still, and its own stack.
    fn slot_of(&self, thread: &Stopped) -> Option<u32> {
        let index = |address: u64| {
            let index = address.checked_sub(self.base + SLOTS_OFFSET)? / SLOT_STRIDE;
            (index < MAX_THREADS as u64).then_some(index as u32)
        };
        // A stack pointer at the end of a stack is that stack's.
        index(thread.registers.rsp.wrapping_sub(1)).or_else(|| index(thread.registers.gs_base))
    }

    /// What a save adds to the frame.
    fn write_saved(&self, index: u32, frame: &Frame, thread: &Stopped) -> Result<(), Error> {
        use zhuque_abi::slot::Saved;
        let (at, saved) = (slot_at(index), offset_of!(Slot, saved));
        let life = self.base + LIFE_OFFSET + LIFE_THREADS + u64::from(index) * size_of::<LifeThread>() as u64;
        let [words] = stopped::read_words(thread.tid, life + offset_of!(LifeThread, lock_wait) as u64 - 4)?;
        let write = |offset: usize, value: &[u8]| self.control.write_all_at(value, at + (saved + offset) as u64);
        write(offset_of!(Saved, retry), &[0; size_of::<zhuque_abi::slot::Retry>()])?;
        write(offset_of!(Saved, fs_base), &thread.registers.fs_base.to_le_bytes())?;
        write(offset_of!(Saved, outside), &1u64.to_le_bytes())?;
        write(offset_of!(Saved, lock_wait), &(words >> 32).to_le_bytes())?;
        write(offset_of!(Saved, name), &thread.name)?;
        write(offset_of!(Saved, frame), &frame.address.to_le_bytes())?;
        Ok(())
    }

    /// Appends a pending signal of a thread to the journal.
    fn append(&self, thread: u32, mut info: SigInfo) -> Result<(), Error> {
        let (code, sender) = ((info[1] & 0xffff_ffff) as i32, (info[2] & 0xffff_ffff) as u32);
        // A timer's names that instead, and the shim knows it.
        if code <= 0 && code != SI_TIMER && sender == self.header.pid {
            // As the program knows itself.
            info[2] = info[2] & !0xffff_ffff | u64::from(self.header.virtual_pid);
        }
        let mut buffer = [0; 512];
        let bytes = codec::encode(&Record::PendingSignal { thread, info }, &mut buffer)
            .map_err(|_| Error::Region("a pending signal cannot be written down"))?;
        let offset = offset_of!(Header, journal_bytes) as u64;
        let used = read_u64(self.control, offset)?;
        self.control.write_all_at(&buffer[..bytes], JOURNAL_OFFSET + used)?;
        self.control.write_all_at(&(used + bytes as u64).to_le_bytes(), offset)?;
        Ok(())
    }

    fn slot_u64(&self, at: u64, offset: usize) -> Result<u64, Error> {
        read_u64(self.control, at + offset as u64)
    }

    fn slot_u32(&self, at: u64, offset: usize) -> Result<u32, Error> {
        self.slot_u64(at, offset).map(|value| value as u32)
    }
}

/// Where a slot lies in the control mapping.
fn slot_at(index: u32) -> u64 {
    SLOTS_OFFSET + u64::from(index) * SLOT_STRIDE
}

fn read_u64(control: &File, offset: u64) -> Result<u64, Error> {
    let mut bytes = [0; 8];
    control.read_exact_at(&mut bytes, offset)?;
    Ok(u64::from_le_bytes(bytes))
}
