//! The guest's locks and hand-shakes in every order that the memory model allows (loom); the code is the guest's own.
//!
//!     cargo test -p zhuque-model --features loom --test sync --release
//!
//! A sleeper that nobody wakes is a deadlock, which loom reports: here no sleep ends by time.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use zhuque_model::sync::{Collection, Futex, lock, read, unlock, write};

/// Some words, and the kernel's queues for them: looking at a word and falling asleep is one step for it.
struct Kernel {
    words: [AtomicU32; 3],
    woken: [Condvar; 3],
    /// The process has ended: nobody sleeps any more.
    over: Mutex<bool>,
}

impl Kernel {
    fn new() -> Kernel {
        let words = [AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)];
        Kernel { words, woken: [Condvar::new(), Condvar::new(), Condvar::new()], over: Mutex::new(false) }
    }

    /// The queue of a word.
    fn queue(&self, word: &AtomicU32) -> &Condvar {
        let index = self.words.iter().position(|own| std::ptr::eq(own, word));
        &self.woken[index.expect("one of the words")]
    }

    fn end(&self) {
        let mut over = self.over.lock().expect("kernel");
        *over = true;
        self.woken.iter().for_each(Condvar::notify_all);
    }

    fn ended(&self) -> bool {
        *self.over.lock().expect("kernel")
    }
}

impl Futex for Kernel {
    fn wait(&self, word: &AtomicU32, value: u32) {
        let over = self.over.lock().expect("kernel");
        if !*over && word.load(Ordering::SeqCst) == value {
            drop(self.queue(word).wait(over));
        }
    }

    fn wake(&self, word: &AtomicU32, count: u32) {
        let _kernel = self.over.lock().expect("kernel");
        match count {
            1 => self.queue(word).notify_one(),
            _ => self.queue(word).notify_all(),
        }
    }
}

/// The kernel and something else.
struct Shared<T> {
    kernel: Kernel,
    data: T,
}

fn shared<T>(data: T) -> Arc<Shared<T>> {
    Arc::new(Shared { kernel: Kernel::new(), data })
}

/// Bounds the search: what more than three preemptions would find, three threads and loops find with fewer.
fn bounded(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// One holder at a time, who sees what the one before has written; nobody sleeps for ever.
#[test]
fn locks() {
    for others in [1, 2] {
        bounded(move || {
            let shared = shared(UnsafeCell::new(0u32));
            let take = |shared: &Shared<UnsafeCell<u32>>| {
                let word = &shared.kernel.words[0];
                let waits = |begins: bool| shared.kernel.words[1].store(u32::from(begins), Ordering::Relaxed);
                lock(word, &shared.kernel, waits);
                // SAFETY: the lock is held; loom complains where that does not suffice.
                shared.data.with_mut(|value| unsafe { *value += 1 });
                unlock(word, &shared.kernel);
            };
            let threads: Vec<_> = (0..others)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || take(&shared))
                })
                .collect();
            take(&shared);
            threads.into_iter().for_each(|thread| thread.join().expect("thread"));
            // SAFETY: all others have ended.
            assert_eq!(shared.data.with(|value| unsafe { *value }), others + 1);
            assert_eq!(shared.kernel.words[0].load(Ordering::Relaxed), 0, "the lock is free");
        });
    }
}

/// A reader sees one writer's values or the other's, never half of each.
#[test]
fn tables_read_without_a_lock() {
    bounded(|| {
        let shared = shared([AtomicU64::new(0), AtomicU64::new(0)]);
        let writer = shared.clone();
        let writes = thread::spawn(move || {
            write(&writer.kernel.words[0], || writer.data.iter().for_each(|word| word.store(1, Ordering::Relaxed)));
        });
        let [first, second] = read(&shared.kernel.words[0], || {
            [shared.data[0].load(Ordering::Relaxed), shared.data[1].load(Ordering::Relaxed)]
        });
        assert_eq!(first, second, "a torn value");
        writes.join().expect("writer");
    });
}

/// Whoever stands still answers exactly once when asked, however late it came; the leader sees what was written for it.
#[test]
fn threads_that_stand_still_answer() {
    for others in [1u32, 2] {
        bounded(move || {
            let shared = shared([AtomicU32::new(0), AtomicU32::new(0)]);
            fn collection(words: &[AtomicU32; 3]) -> Collection<'_> {
                let [round, collect, collected] = words;
                Collection { round, collect, collected }
            }
            let threads: Vec<_> = (0..others as usize)
                .map(|number| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let mut answered = 0;
                        let answer = || _ = shared.data[number].fetch_add(1, Ordering::Relaxed);
                        while !shared.kernel.ended() {
                            collection(&shared.kernel.words).stand(&mut answered, answer, &shared.kernel);
                        }
                    })
                })
                .collect();
            collection(&shared.kernel.words).ask(others, &shared.kernel);
            for number in 0..others as usize {
                assert_eq!(shared.data[number].load(Ordering::Relaxed), 1, "answers of thread {number}");
            }
            // That is how those who stand still in the guest end, too.
            shared.kernel.end();
            threads.into_iter().for_each(|thread| thread.join().expect("thread"));
        });
    }
}
